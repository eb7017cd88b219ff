"""Who works on an open step, and what follows when nobody does: taken over, or ended by the engine.

Only the engine takes over, and only when no result can be waiting: a result published before its worker died counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from conveyor_runtime.bus import Bus
from conveyor_runtime.bus.streams import stream_info
from conveyor_runtime.engine import planner
from conveyor_runtime.engine.liveness import Liveness
from conveyor_runtime.engine.transitions import Transitions
from conveyor_runtime.errors import RevisionConflict, StoreError
from conveyor_runtime.models import ENGINE, Claim, PlannedStep, RunRecord, Status, StepState
from conveyor_runtime.store import Put, keys
from conveyor_runtime.telemetry import metrics

log = logging.getLogger(__name__)

RESULTS = "cv-results"

#: Seconds between two looks at whether the results that waited have been taken in.
_FLUSH_POLL = 0.1

Numbers = tuple[str, str, int, int]


class Ownership:
    """Looks at the claim of an open step and does what it calls for."""

    def __init__(self, transitions: Transitions, bus: Bus, liveness: Liveness) -> None:
        self._transitions = transitions
        self._state = transitions.state
        self._bus = bus
        self._liveness = liveness
        self._flush_after: dict[Numbers, int] = {}

    async def examine(
        self, run: RunRecord, step: PlannedStep, state: StepState, later: Callable[[str, float], None]
    ) -> RunRecord:
        """The run after whatever this step's claim calls for. `later(run_id, seconds)` asks for another look."""
        cancelled = planner.cancel_applies(run, step)
        claim = await self._claim(run, step, state, create=cancelled)
        if claim is None:
            return run
        if claim.instance == ENGINE:
            return await self._end(run, step, state, Status.CANCELLED if cancelled else Status.ERROR, claim.why, None)
        dead = self._liveness.is_dead(claim.instance)
        if not dead and (claim.timed_out or not claim.given_up):
            return run
        if not await self._results_taken_in((run.run_id, step.id, state.attempt, state.takeover)):
            later(run.run_id, _FLUSH_POLL)
            return run
        if cancelled:
            return await self._end(run, step, state, Status.CANCELLED, "its worker stopped", claim.node)
        if claim.timed_out:
            return await self._end(run, step, state, Status.TIMED_OUT, "it did not stop at its timeout", claim.node)
        return await self._take_over(run, step, state, claim, died=dead and not claim.given_up)

    async def _claim(self, run: RunRecord, step: PlannedStep, state: StepState, *, create: bool) -> Claim | None:
        """The claim of the current attempt and takeover. `create`: where there is none, the engine claims it, so that
        no worker can start it any more."""
        numbers = (run.run_id, step.id, state.attempt, state.takeover)
        known = self._state.view.claim(*numbers)
        if known is not None or not create:
            return known.record if known else None
        why = run.cancel.why if run.cancel else ""
        mine = Claim(instance=ENGINE, at=self._transitions.now(), why=why)
        try:
            await self._state.commit(Put(keys.claim(*numbers), mine, 0))
        except RevisionConflict:
            found = await self._state.claim(*numbers)
            return found.record if found else None
        return mine

    async def _results_taken_in(self, numbers: Numbers) -> bool:
        """Whether every result stored before this was first asked has been taken in."""
        info = await stream_info(self._bus, RESULTS)
        if info is None:
            raise StoreError(f"the stream {RESULTS} is missing")
        state = info["state"]
        last = self._flush_after.setdefault(numbers, int(state["last_seq"]))
        if state["messages"] and int(state["first_seq"]) <= last:
            return False
        del self._flush_after[numbers]
        return True

    async def _take_over(
        self, run: RunRecord, step: PlannedStep, state: StepState, claim: Claim, *, died: bool
    ) -> RunRecord:
        why = "its worker died" if died else f"its worker gave up ({claim.why})" if claim.why else "its worker gave up"
        log.warning("step %s of run %s is handed to another worker: %s", step.id, run.run_id, why)
        metrics.TAKEOVERS.inc()

        def change(record: RunRecord) -> RunRecord:
            if not _same(record, step.id, state):
                return record
            fleet, now = self._transitions.fleet(), self._transitions.now()
            return planner.take_over(record, step.id, claim.node, died=died, fleet=fleet, now=now)

        return await self._transitions.change(run.run_id, change) or run

    async def _end(
        self, run: RunRecord, step: PlannedStep, state: StepState, status: Status, why: str, node: str | None
    ) -> RunRecord:
        def change(record: RunRecord) -> RunRecord:
            if not _same(record, step.id, state):
                return record
            return planner.end_step(record, step.id, status, why, self._transitions.now(), node=node)

        return await self._transitions.change(run.run_id, change) or run


def _same(record: RunRecord, step_id: str, state: StepState) -> bool:
    """Whether the step is still open at the attempt and takeover that were looked at."""
    current = record.steps.get(step_id)
    return (
        current is not None
        and not record.status.terminal
        and current.open
        and (current.attempt, current.takeover) == (state.attempt, state.takeover)
    )
