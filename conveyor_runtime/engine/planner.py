"""The life of a run, pure: a run record and what is registered go in, the next run record comes out.

Nothing here reads a clock, a store or the bus, so every rule can be tested as a table. The engine commits what comes
out by compare-and-set and then publishes the dispatches it names.

    open ready steps -> (result | takeover | engine ends it) -> open what follows -> finally steps -> terminal
"""

from __future__ import annotations

from datetime import datetime, timedelta

from conveyor_runtime.engine import steps
from conveyor_runtime.engine.plans import Fleet
from conveyor_runtime.kit.backoff import exponential
from conveyor_runtime.models import (
    LONGEST_REQUEUE,
    Cancel,
    Claim,
    PlannedStep,
    RunRecord,
    Status,
    StepResult,
    StepState,
    short,
)

#: Deaths from which on a takeover waits before it is dispatched. What kills its process kills all that goes on there:
#: waits that differ bring the innocent back at other times than the culprit.
DEATHS_TO_WAIT = 2

#: Seconds of the first such wait; doubled at each death that follows.
DEATH_WAIT = 10.0

#: Attempts of a step whose driver failed in a way that another attempt may mend.
MAX_ATTEMPTS = 3

#: Seconds before the second attempt; doubled for the third.
RETRY_INITIAL = 1.0


def advance(run: RunRecord, fleet: Fleet, now: datetime) -> RunRecord:
    """Everything that follows by itself: steps skipped, retried, opened and issued; the run ended."""
    if run.status.terminal or run.plan is None:
        return run
    run = _follow_cancel(run, now)
    while (after := _pass(run, fleet, now)) is not run:
        run = after
    return _finish(run, now)


def _pass(run: RunRecord, fleet: Fleet, now: datetime) -> RunRecord:
    """One look at every step in order; the same object if nothing changed."""
    assert run.plan is not None
    for step in run.plan:
        state = run.state(step.id)
        if state.status.terminal:
            continue
        due = state.goes_on_at
        if due is not None and due > now:
            continue
        if due is not None and state.status is Status.AWAITING_RETRY:
            return issue(run, step, _queued(step, _reopened(state), now), fleet, now)
        if state.status is not Status.PENDING:
            continue
        if steps.has_nothing_to_clean(run, step, fleet) and state.issue == 0:
            unknown = f"no worker has begun this run, and the driver {step.driver} has never registered"
            return _with_step(run, step.id, _skipped(state, unknown, now))
        if state.attempt == 0:
            if not steps.needs_ended(run, step):
                continue
            if (why := steps.reason_to_skip(run, step)) is not None:
                return _with_step(run, step.id, _skipped(state, why, now))
            return issue(run, step, _queued(step, state.model_copy(update={"attempt": 1}), now), fleet, now)
        may_leave = due is not None or fleet.can_deliver(step.driver, state.node)
        if state.issue == 0 and may_leave and not run.cancels(step):
            return issue(run, step, state, fleet, now)
    return run


def issue(run: RunRecord, step: PlannedStep, state: StepState, fleet: Fleet, now: datetime) -> RunRecord:
    """Note one more publication of the step's dispatch, to the node it must meet; 0 if nobody could keep it."""
    update: dict[str, object] = {"due": None}
    if step.driver in fleet.drivers and fleet.is_sandbox(step.driver):
        nodes = steps.nodes_to_meet(run, step, fleet) or ({run.home} if run.home is not None else set())
        if len(nodes) > 1:
            update |= {
                "status": Status.ERROR,
                "message": f"it must meet sandboxes on different nodes: {', '.join(sorted(nodes))}",
                "finished_at": now,
            }
            return _with_step(run, step.id, state.model_copy(update=update))
        update["node"] = next(iter(nodes), None)
    node = update.get("node", state.node)
    if fleet.can_deliver(step.driver, node if isinstance(node, str) else None):
        update |= {"issue": state.issue + 1, "issued_at": now}
    return _with_step(run, step.id, state.model_copy(update=update))


def apply_result(
    run: RunRecord, result: StepResult, now: datetime, jitter: float | None = None, *, data_key: str | None = None
) -> RunRecord | None:
    """The run with a result taken in, its data wherever `data_key` says; None if the result matches no open step,
    attempt and takeover."""
    if not run.awaits(result):
        return None
    state = run.steps[result.step]
    planned = run.step(result.step)
    if not result.status.terminal:
        # Nothing would ever end a step whose driver says that it goes on.
        said = f"its driver reported {result.status}, which is no end"
        result = result.model_copy(update={"status": Status.ERROR, "message": said})
    may_retry = result.retryable and state.attempt < MAX_ATTEMPTS and (run.cancel is None or planned.finally_)
    update: dict[str, object] = {
        "status": result.status,
        "message": short(result.message),
        "exit_code": result.exit_code,
        "data": result.data,
        "data_key": data_key,
        "instance": result.instance or None,
        "claimed_node": result.node or state.claimed_node,
        "stays": result.stays,
        "started_at": result.started_at or state.started_at,
        "finished_at": result.finished_at or now,
    }
    if may_retry:
        wait = exponential(state.attempt, initial=RETRY_INITIAL, maximum=60.0, jitter=jitter)
        update |= {"status": Status.AWAITING_RETRY, "due": now + timedelta(seconds=wait), "finished_at": None}
    after = _with_step(run, result.step, state.model_copy(update=update))
    if result.requeue_after is not None:
        wait = min(max(result.requeue_after, 0.0), LONGEST_REQUEUE)
        after = after.model_copy(update={"requeue_after": wait})
    return after


def take_over(
    run: RunRecord,
    step_id: str,
    node: str | None,
    *,
    died: bool,
    fleet: Fleet,
    now: datetime,
    jitter: float | None = None,
) -> RunRecord:
    """The attempt handed to another worker, at once or, after several deaths, later; Error once that has been too
    often. Never one that is cancelled."""
    state, step = run.steps[step_id], run.step(step_id)
    if run.cancels(step):
        return run
    why, deaths = steps.too_often(state, died=died), state.deaths + died
    update: dict[str, object] = {"deaths": deaths, "claimed_node": node or state.claimed_node}
    if why is not None:
        update |= {"status": Status.ERROR, "message": why, "finished_at": now}
        return _with_step(run, step_id, state.model_copy(update=update))
    update["takeover"] = state.takeover + 1
    if died and deaths >= DEATHS_TO_WAIT:
        wait = exponential(deaths - DEATHS_TO_WAIT + 1, initial=DEATH_WAIT, maximum=600.0, jitter=jitter)
        due = now + timedelta(seconds=wait)
        return _with_step(run, step_id, _queued(step, state.model_copy(update={**update, "issue": 0, "due": due}), due))
    return issue(run, step, _queued(step, state.model_copy(update=update), now), fleet, now)


def reissue(run: RunRecord, step_id: str, fleet: Fleet, now: datetime) -> RunRecord:
    """The dispatch published once more, because its message is gone. Never one that is cancelled."""
    step = run.step(step_id)
    return run if run.cancels(step) else issue(run, step, run.steps[step_id], fleet, now)


def end_step(
    run: RunRecord, step_id: str, status: Status, message: str, now: datetime, *, claim: Claim | None = None
) -> RunRecord:
    """The step ended by the engine, not by a result; `claim` is that of the worker that had it."""
    state = run.steps[step_id]
    update: dict[str, object] = {"status": status, "message": short(message), "finished_at": now}
    if claim is not None:
        update |= {"claimed_node": claim.node or state.claimed_node, "started_at": state.started_at or claim.at}
    return _with_step(run, step_id, state.model_copy(update=update))


def cancel(run: RunRecord, who: str, why: str, now: datetime) -> RunRecord:
    """The run asked to end. The first asker counts; a terminal run stays as it is."""
    if run.status.terminal or run.cancel is not None:
        return run
    return run.model_copy(update={"cancel": Cancel(who=short(who), why=short(why), at=now)})


def end_unstarted(run: RunRecord, reason: str, now: datetime) -> RunRecord:
    """A run that never became active, ended at once: every step Skipped, `finally` ones too."""
    if run.status.terminal or run.steps:
        # With a step opened it did become active, whatever the caller believes: its `finally` steps are owed.
        return run
    skipped = StepState(status=Status.SKIPPED, message=reason, finished_at=now)
    steps = {step.id: skipped for step in run.plan or ()}
    return run.model_copy(update={"status": Status.CANCELLED, "reason": reason, "finished_at": now, "steps": steps})


def reopen(run: RunRecord, step_id: str, attempt: int, now: datetime) -> RunRecord:
    """The run with another attempt of a step that ended with this one, and with what was skipped for it before it.

    The same object where that cannot be: `finally` steps come when all else has ended, and do not come twice.
    """
    state, plan = run.steps.get(step_id), run.plan or ()
    if run.status.terminal or run.cancel is not None or state is None or state.attempt != attempt:
        return run
    if state.status is not Status.ERROR or any(step.finally_ and step.id in run.steps for step in plan):
        return run
    kept = {
        step.id: run.steps[step.id]
        for step in plan
        if step.id in run.steps
        and not (run.steps[step.id].status is Status.SKIPPED and step_id in steps.ancestors(run, step))
    }
    again = StepState(attempt=attempt + 1, queued_at=now, claimed_node=state.claimed_node, message=state.message)
    return run.model_copy(update={"steps": {**kept, step_id: again}})


def _with_step(run: RunRecord, step_id: str, state: StepState) -> RunRecord:
    status = Status.RUNNING if run.status is Status.ACCEPTED and state.status is not Status.PENDING else run.status
    return run.model_copy(update={"steps": {**run.steps, step_id: state}, "status": status})


def _skipped(state: StepState, why: str, now: datetime) -> StepState:
    return state.model_copy(update={"status": Status.SKIPPED, "message": why, "finished_at": now})


def _queued(step: PlannedStep, state: StepState, now: datetime) -> StepState:
    """The step as it begins to wait for a worker."""
    return state if step.queue_timeout is None else state.model_copy(update={"queued_at": now})


def _reopened(state: StepState) -> StepState:
    return StepState(attempt=state.attempt + 1, claimed_node=state.claimed_node, message=state.message)


def _follow_cancel(run: RunRecord, now: datetime) -> RunRecord:
    """A cancelled run's steps that wait for their next attempt end at once."""
    if run.cancel is None:
        return run
    for step in run.plan or ():
        state = run.steps.get(step.id)
        if state and state.status is Status.AWAITING_RETRY and run.cancels(step):
            update = {"status": Status.CANCELLED, "due": None, "finished_at": now}
            run = _with_step(run, step.id, state.model_copy(update=update))
    return run


def _finish(run: RunRecord, now: datetime) -> RunRecord:
    """The run ended, once every step has."""
    if not all(run.state(step.id).status.terminal for step in run.plan or ()):
        return run
    status, reason = steps.verdict(run)
    return run.model_copy(update={"status": status, "reason": reason, "finished_at": now})
