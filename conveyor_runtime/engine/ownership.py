"""Who works on an open step, and what follows when nobody does: taken over, or ended by the engine.

Only the engine takes over, and only when no result can be waiting: a result published before its worker died counts.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from conveyor_runtime.bus import Bus
from conveyor_runtime.engine import intray, planner, steps
from conveyor_runtime.engine.liveness import Liveness
from conveyor_runtime.engine.nodes import NODE_GONE, Nodes
from conveyor_runtime.engine.transitions import Transitions
from conveyor_runtime.errors import RevisionConflict
from conveyor_runtime.models import ENGINE, Claim, PlannedStep, RunRecord, Status, StepState
from conveyor_runtime.store import Put, keys
from conveyor_runtime.telemetry import metrics

log = logging.getLogger(__name__)

#: Seconds between two looks at whether the results that waited have been taken in.
_FLUSH_POLL = 0.1

Numbers = tuple[str, str, int, int]


class Ownership:
    """Looks at the claim of an open step and does what it calls for."""

    def __init__(self, transitions: Transitions, bus: Bus, liveness: Liveness, nodes: Nodes) -> None:
        self._transitions = transitions
        self._state = transitions.state
        self._bus = bus
        self._liveness = liveness
        self._nodes = nodes
        self._flush_after: dict[Numbers, int] = {}

    async def examine(
        self, run: RunRecord, step: PlannedStep, state: StepState, later: Callable[[str, float], None]
    ) -> RunRecord:
        """The run after whatever this step's claim calls for. `later(run_id, seconds)` asks for another look."""
        cancelled = run.cancels(step)
        queue_left = steps.queue_left(step, state, self._transitions.now())
        claim = await self._claim(run, step, state, self._ending(run, step, state, queue_left))
        if claim is None:
            if queue_left is not None:
                later(run.run_id, queue_left)
            return run
        end = self._transitions.end_step
        if claim.instance == ENGINE:
            unrun = Status.TIMED_OUT if claim.timed_out else Status.SKIPPED if step.finally_ else Status.ERROR
            return await end(run, step, state, Status.CANCELLED if cancelled else unrun, claim.why)
        numbers = (run.run_id, step.id, state.attempt, state.takeover)
        dead = self._liveness.is_dead(claim.instance)
        if not dead and (claim.timed_out or not claim.given_up):
            # It may have been thought dead and be back: what it publishes from now on must be waited for anew.
            self._flush_after.pop(numbers, None)
            return run
        if not await self._results_taken_in(numbers):
            later(run.run_id, _FLUSH_POLL)
            return run
        if cancelled:
            return await end(run, step, state, Status.CANCELLED, "its worker stopped", claim=claim)
        if claim.timed_out:
            return await end(run, step, state, Status.TIMED_OUT, "it did not stop at its timeout", claim=claim)
        return await self._take_over(run, step, state, claim, died=dead and not claim.given_up)

    def _ending(self, run: RunRecord, step: PlannedStep, state: StepState, queue_left: float | None) -> Claim | None:
        """The claim by which the engine ends this step if nobody works on it yet; None = it is still waited for."""
        why, timed_out = None, False
        if run.cancel is not None and not step.finally_:
            why = run.cancel.why
        elif queue_left is not None and queue_left <= 0:
            why, timed_out = steps.not_taken(step), True
        elif state.node is not None and self._nodes.is_gone(step.driver, state.node):
            why = f"{steps.NODE_GONE}: no {step.driver} has run on {state.node} for {NODE_GONE / 60:.0f} minutes"
        if why is None:
            return None
        return Claim(instance=ENGINE, at=self._transitions.now(), why=why, timed_out=timed_out)

    async def _claim(self, run: RunRecord, step: PlannedStep, state: StepState, mine: Claim | None) -> Claim | None:
        """The claim of the current attempt and takeover. What nobody has claimed becomes `mine`, if that is given, so
        that no worker can start it any more."""
        numbers = (run.run_id, step.id, state.attempt, state.takeover)
        known = self._state.view.claim(*numbers)
        if known is not None or mine is None:
            return known.record if known else None
        try:
            await self._state.commit(Put(keys.claim(*numbers), mine, 0))
        except RevisionConflict:
            found = await self._state.claim(*numbers)
            if found is None:
                return None
            # A claim this new may name an instance that the view has not met yet, which is not the same as a dead one.
            await self._state.view.wait_for(found.revision)
            return found.record
        return mine

    async def _results_taken_in(self, numbers: Numbers) -> bool:
        """Whether every result stored before this was first asked has been taken in."""
        if numbers not in self._flush_after:
            self._flush_after[numbers] = await intray.last_stored(self._bus)
        if await intray.taken_in(self._bus) < self._flush_after[numbers]:
            return False
        del self._flush_after[numbers]
        return True

    async def _take_over(
        self, run: RunRecord, step: PlannedStep, state: StepState, claim: Claim, *, died: bool
    ) -> RunRecord:
        why = "its worker died" if died else f"its worker gave up ({claim.why})" if claim.why else "its worker gave up"
        too_often = steps.too_often(state, died=died)
        if too_often is None:
            log.warning("step %s of run %s is handed to another worker: %s", step.id, run.run_id, why)
            metrics.TAKEOVERS.inc()
        else:
            log.error("step %s of run %s is given up: %s; %s", step.id, run.run_id, why, too_often)
            # Before the commit: a letter too many is a smaller evil than one too few.
            await self._transitions.dispatcher.keep_letter(run, step, state, too_often)
        jitter = random.random()  # noqa: S311 - spreads takeovers, no secret

        def change(record: RunRecord) -> RunRecord:
            # Asked last thing before the commit: reading what waits, or keeping a letter, took its time.
            if not claim.given_up and not self._liveness.is_dead(claim.instance):
                return record
            fleet, now = self._transitions.fleet(), self._transitions.now()
            return planner.take_over(record, step.id, claim.node, died=died, fleet=fleet, now=now, jitter=jitter)

        return await self._transitions.change_step(run, step, state, change)
