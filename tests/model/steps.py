"""One step of a run, and what a run's steps make of it: the transitions there are, each with what must hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
Numbers = tuple[str, str, int, int]

MAX_ATTEMPTS, MAX_DEATHS, MAX_HANDOVERS = 3, 5, 20

_BAD = ("TimedOut", "Error", "Failed", "Cancelled")
_TERMINAL = (*_BAD, "Succeeded", "Skipped")


class Violation(AssertionError):
    """Something happened that must not; the text says what, and which rule or promise forbids it."""


def ensure(true: object, otherwise: str) -> None:
    """Raises Violation."""
    if not true:
        raise Violation(otherwise)


def terminal(status: str) -> bool:
    """Whether nothing follows."""
    return status in _TERMINAL


@dataclass(frozen=True)
class StepNow:
    """Where a step stands."""

    status: str = "Pending"
    attempt: int = 0
    takeover: int = 0
    deaths: int = 0
    issue: int = 0
    instance: str | None = None


def step_of(run: Record, step: str) -> StepNow:
    """The step as the record says; one it does not mention has not been opened."""
    state = run.get("steps", {}).get(step, {})
    return StepNow(**{key: state[key] for key in StepNow.__dataclass_fields__ if key in state})


def explain(run: Record, planned: Record, before: StepNow, after: StepNow) -> str:
    """Which transition this is; Violation if it is none. `run` is the record afterwards."""
    named = f"{planned['id']} of {run['run_id']}"
    stopped = run.get("cancel") is not None and not planned.get("finally")
    ensure(not terminal(before.status) or before == after, f"I2: {named} had ended: {before}, {after}")
    numbers = (before.attempt, before.takeover)
    if before == after:
        return "nothing"
    ensure(after.attempt <= MAX_ATTEMPTS, f"I8: {named} is at attempt {after.attempt}")
    ensure(after.deaths <= MAX_DEATHS, f"I8: {named} has killed {after.deaths}")
    ensure(after.takeover - after.deaths <= MAX_HANDOVERS, f"I8: {named} is handed over again and again")
    if before.attempt == 0:
        return _begun(run, planned, after, named, stopped=stopped)
    if before.status == "AwaitingRetry":
        if after.status == "Pending":
            ensure((after.attempt, after.takeover) == (before.attempt + 1, 0), f"{named} skips: {before}, {after}")
            ensure(not stopped, f"rule 13: {named} is tried again though it is cancelled")
            return "retry"
        ensure(stopped and after.status == "Cancelled", f"{named} waited for its retry and is {after}")
        return "skip"
    if (after.attempt, after.takeover) == numbers and after.status == "Pending":
        ensure(after.issue > before.issue and after.deaths == before.deaths, f"{named}: {before}, {after}")
        ensure(not stopped, f"rule 13: {named} is issued though it is cancelled")
        return "issue"
    if (after.attempt, after.takeover) == (before.attempt, before.takeover + 1):
        ensure(after.status == "Pending" and after.deaths - before.deaths in (0, 1), f"{named}: {before}, {after}")
        ensure(not stopped, f"rule 13: {named} is taken over though it is cancelled")
        return "takeover"
    ensure((after.attempt, after.takeover) == numbers, f"I2: {named} jumps: {before}, {after}")
    if after.instance is not None or after.status == "AwaitingRetry":
        ensure(
            after.status != "AwaitingRetry" or not stopped, f"rule 13: {named} is to be tried again though cancelled"
        )
        return "result"
    ensure(after.status in ("Cancelled", "TimedOut", "Error"), f"{named} is ended as {after}")
    if after.status == "Cancelled":
        ensure(stopped, f"rule 13: {named} is ended as cancelled, which it is not")
    return "end"


def _begun(run: Record, planned: Record, after: StepNow, named: str, *, stopped: bool) -> str:
    plan = {step["id"]: step for step in run["plan"]}
    if after.status == "Skipped":
        unrun = all(step_of(run, step).status == "Skipped" for step in plan)
        needed = any(step_of(run, need).status in (*_BAD, "Skipped") for need in planned.get("needs", ()))
        ensure(unrun or ((stopped or needed) and not planned.get("finally")), f"I7: {named} is skipped: {run}")
        return "skip"
    ensure(after.status == "Pending" and (after.attempt, after.takeover) == (1, 0), f"{named} begins as {after}")
    before_it = [step["id"] for step in plan.values() if not step.get("finally")]
    needs = before_it if planned.get("finally") and not planned.get("needs") else planned.get("needs", ())
    ensure(all(terminal(step_of(run, need).status) for need in needs), f"{named} begins before what it needs")
    fine = all(step_of(run, need).status not in _BAD for need in planned.get("needs", ()))
    ensure(planned.get("finally") or (fine and not stopped), f"{named} begins though it must not: {run}")
    return "open"


def status_of(run: Record) -> str:
    """What its steps make of a run."""
    plan = run.get("plan")
    states = {step["id"]: step_of(run, step["id"]) for step in plan or ()}
    if plan is None or not all(terminal(state.status) for state in states.values()):
        begun = any(state.status != "Pending" for state in states.values())
        return "Running" if begun or run["status"] == "Running" else "Accepted"
    if not states:
        # Nobody looks until its turn comes; it has nothing to do then, unless it has been superseded.
        return run["status"] if run["status"] in ("Accepted", "Cancelled") else "Succeeded"
    if all(state.status == "Skipped" for state in states.values()):
        return "Cancelled"
    main = [step["id"] for step in plan if not step.get("finally")]
    last = [step["id"] for step in plan if step.get("finally")]
    by_itself = [states[step].status for step in main if states[step].status in _BAD]
    worst = next((it for it in by_itself if it != "Cancelled"), by_itself[0] if by_itself else "Succeeded")
    if run.get("cancel") and worst == "Succeeded" and any(states[step].status == "Skipped" for step in main):
        return "Cancelled"
    if worst != "Succeeded":
        return worst
    after = [states[step].status for step in last if states[step].status in _BAD]
    return next((it for it in after if it != "Cancelled"), after[0] if after else "Succeeded")
