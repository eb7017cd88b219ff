"""The promises about a driver built on another SDK: it acknowledges before it works, and has no lease."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from conveyor_runtime.models import RunRecord, Status, StepState
from tests.chaos.evidence import Evidence, Taken, taken_by
from tests.chaos.fleet import FOREIGN, Member
from tests.chaos.verdict import Verdict, listed

#: Seconds after an acknowledgement in which a killed server may forget it.
_FORGOTTEN = 10.0

#: Seconds before a deadline in which its driver may have been kept from saying anything.
_LATE = 12.0


def foreign_steps(it: Evidence) -> Verdict:
    """Rule 17. An attempt is handed out once, whatever is killed; one that nobody answers for ends by its timeout."""
    verdict = Verdict("foreign driver")
    if (member := it.fleet.foreign) is None:
        verdict.counted = "none here"
        return verdict
    takes: dict[tuple[str, str, int], list[Taken]] = defaultdict(list)
    for said in taken_by(member, it.wall):
        if said.what == "took":
            takes[said.run_id, said.step, said.attempt].append(said)
    for name, times in takes.items():
        if len(times) > 1 and not _in_trouble(it, member, times[0].at - 2.0, times[0].at + _FORGOTTEN):
            verdict.wrong.append(f"{name} was handed out {len(times)} times")
    ended: Counter[str] = Counter()
    for run, step, state in _steps(it):
        ended[state.status.value] += 1
        verdict.wrong += _wrong(it, member, run, step, state, takes.get((run.run_id, step, state.attempt), []))
    verdict.counted = f"{len(takes)} attempts taken, {len(member.lives)} lives, steps: {listed(ended)}"
    return verdict


def _steps(it: Evidence) -> Iterator[tuple[RunRecord, str, StepState]]:
    for run in it.runs.values():
        for step in run.plan or ():
            if step.driver == FOREIGN and (state := run.steps.get(step.id)) is not None:
                yield run, step.id, state


def _wrong(
    it: Evidence, member: Member, run: RunRecord, step: str, state: StepState, takes: list[Taken]
) -> Iterator[str]:
    """What should not be so of one step."""
    named = f"{step} of {run.run_id} ({state.status}: {state.message})"
    finished = state.finished_at.timestamp() - it.wall if state.finished_at is not None else float("inf")
    match state.status:
        case Status.SUCCEEDED:
            if not takes or state.data != {"by": "go"}:
                yield f"{named} was not done by it: {state.data}, {takes}"
            elif not _said(it, run) and not _in_trouble(it, member, takes[0].at - 2.0, finished):
                yield f"the line of {named} is not stored"
        case Status.TIMED_OUT:
            if not _in_trouble(it, member, finished - _LATE, finished):
                yield f"{named} timed out though nothing was wrong with its driver: {takes}"
        case Status.CANCELLED:
            if takes and "before" in state.message:
                yield f"{named} was taken all the same: {takes}"
        case Status.SKIPPED:
            if takes:
                yield f"{named} was taken: {takes}"
        case _:
            yield f"{named} ended otherwise"


def _said(it: Evidence, run: RunRecord) -> bool:
    return any(line.driver == FOREIGN and line.message == "from Go" for line in it.logs.get(run.run_id, []))


def _in_trouble(it: Evidence, member: Member, begin: float, end: float) -> bool:
    """Whether it, or what it talks to, was broken at any moment between."""
    spans = [*member.trouble, *it.fleet.outages, *(span for life in member.lives for span in life.frozen)]
    died = any(life.ended is not None and begin <= life.ended <= end for life in member.lives)
    return died or any(span.touches(begin, end) for span in spans)
