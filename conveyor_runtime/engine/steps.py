"""Looking at a run: which of its steps are open, what they need, where they must meet, what they add up to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from conveyor_runtime.engine.plans import Fleet
from conveyor_runtime.models import (
    PlannedStep,
    ResourceRecord,
    RunRecord,
    Status,
    StepState,
    short,
)

#: Steps with an attempt under way, in the order of the plan.
OpenSteps = Iterable[tuple[PlannedStep, StepState]]

#: Workers that may die under one attempt before the attempt itself is blamed.
MAX_DEATHS = 5

#: Times an attempt is handed over without a death (drained workers, lost leases) before it is ended all the same.
MAX_HANDOVERS = 20

#: How the reason begins why a step ended whose node has nobody any more.
NODE_GONE = "node gone"

#: How a step ends that did not go well.
BAD = (Status.TIMED_OUT, Status.ERROR, Status.FAILED, Status.CANCELLED)


def newly_issued(before: RunRecord | None, after: RunRecord) -> Iterator[tuple[PlannedStep, StepState]]:
    """Steps whose dispatch `after` names and `before` did not."""
    for step, state in after.open_steps():
        old = before.steps.get(step.id) if before is not None else None
        old_numbers = (old.attempt, old.takeover, old.issue) if old is not None else (0, 0, 0)
        if state.issue > 0 and (state.attempt, state.takeover, state.issue) != old_numbers:
            yield step, state


def queue_left(step: PlannedStep, state: StepState, now: datetime) -> float | None:
    """Seconds that a worker is still waited for; None where that has no limit."""
    if step.queue_timeout is None or state.queued_at is None:
        return None
    return step.queue_timeout - (now - state.queued_at).total_seconds()


def not_taken(step: PlannedStep) -> str:
    """What is said of a step that waited for longer than its `queue_timeout`."""
    return f"no worker took it within its queue_timeout of {step.queue_timeout:g} s"


def too_often(state: StepState, *, died: bool) -> str | None:
    """Why an attempt whose worker died or gave up is not handed to another any more; None if it is."""
    if died:
        return f"{MAX_DEATHS} workers died while they worked on it" if state.deaths + 1 >= MAX_DEATHS else None
    return f"handed over {MAX_HANDOVERS} times" if state.takeover - state.deaths >= MAX_HANDOVERS else None


def delete_succeeded(record: ResourceRecord, run: RunRecord) -> bool:
    """Whether this ended run was the delete that may remove the record."""
    last = record.last_delete
    counts = record.deleting and last is not None and last.run_id == run.run_id
    return counts and run.status is Status.SUCCEEDED and run.requeue_after is None


def needs_ended(run: RunRecord, step: PlannedStep) -> bool:
    needs = (other.id for other in run.plan or () if not other.finally_) if step.finally_ else step.needs
    return all(run.state(need).status.terminal for need in needs)


def reason_to_skip(run: RunRecord, step: PlannedStep) -> str | None:
    if step.finally_:
        return None
    if run.cancel is not None:
        return "the run was cancelled"
    bad = next((need for need in ancestors(run, step) if run.steps[need].status in BAD), None)
    return f"step {bad} did not succeed" if bad else None


def has_nothing_to_clean(run: RunRecord, step: PlannedStep, fleet: Fleet) -> bool:
    """Whether this is a `finally` step, of a driver nobody has ever seen, after steps that all ended before any worker
    had one: there is nothing that it could be waited for."""
    if not step.finally_ or fleet.knows(step.driver) or not needs_ended(run, step):
        return False
    before = [run.state(other.id) for other in run.plan or () if not other.finally_]
    return bool(before) and not any(_was_claimed(state) for state in before)


def _was_claimed(state: StepState) -> bool:
    """Whether a worker ever had this step. Only a result makes it Succeeded or Failed, or opens another attempt."""
    traces = (state.claimed_node, state.instance, state.started_at)
    result = state.status in (Status.SUCCEEDED, Status.FAILED)
    return result or any(traces) or state.attempt > 1 or state.takeover > 0


def ancestors(run: RunRecord, step: PlannedStep) -> Iterator[str]:
    """Every step this one needs, directly or through others, nearest first."""
    queue, seen = list(step.needs), set()
    while queue:
        need = queue.pop(0)
        if need not in seen:
            seen.add(need)
            yield need
            queue.extend(run.step(need).needs)


def nodes_to_meet(run: RunRecord, step: PlannedStep, fleet: Fleet) -> set[str]:
    """Where the nearest sandbox steps this one needs were claimed; for `finally`, the last such claim in the run."""
    if step.finally_:
        for other in reversed(run.plan or ()):
            state = run.steps.get(other.id)
            if other.id != step.id and state and state.claimed_node and fleet.is_sandbox(other.driver):
                return {state.claimed_node}
        return set()
    nodes: set[str] = set()
    frontier = list(step.needs)
    while frontier:
        need = run.step(frontier.pop(0))
        state = run.steps.get(need.id)
        if state and state.claimed_node and fleet.is_sandbox(need.driver):
            nodes.add(state.claimed_node)
        else:
            frontier.extend(need.needs)
    return nodes


def verdict(run: RunRecord) -> tuple[Status, str]:
    """What the steps make of a run, once all have ended, and why. What a `finally` step did counts only after a run
    that went well."""
    ordinary = [step for step in run.plan or () if not step.finally_]
    status, reason = _verdict_of(ordinary, run)
    stopped_short = any(run.state(step.id).status is not Status.SUCCEEDED for step in ordinary)
    if run.cancel is not None and stopped_short and status in (Status.SUCCEEDED, Status.CANCELLED):
        status, reason = Status.CANCELLED, run.cancel.reason
    if status is Status.SUCCEEDED:
        status, reason = _verdict_of([step for step in run.plan or () if step.finally_], run)
    return status, reason


def _verdict_of(plan: Sequence[PlannedStep], run: RunRecord) -> tuple[Status, str]:
    """What these steps make of the run: the first one that went wrong by itself says it."""
    bad = [step for step in plan if run.state(step.id).status in BAD]
    if not bad:
        return Status.SUCCEEDED, ""
    first = min(bad, key=lambda step: run.state(step.id).status is Status.CANCELLED)
    state = run.state(first.id)
    return state.status, short(f"step {first.id}: {state.message}".rstrip(": "))
