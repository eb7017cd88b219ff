"""The one way a run changes: read, plan, compare-and-set, publish what the new record names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache

from prometheus_client import Counter, Histogram

from conveyor_runtime.engine import planner, steps
from conveyor_runtime.engine.dispatcher import Dispatcher, UndeliverableError
from conveyor_runtime.engine.plans import Fleet
from conveyor_runtime.errors import BusUnavailable, RevisionConflict
from conveyor_runtime.models import Claim, PlannedStep, RunRecord, Status, StepState, utc_now
from conveyor_runtime.store import Put, State, Versioned, keys
from conveyor_runtime.telemetry import metrics

log = logging.getLogger(__name__)

Change = Callable[[RunRecord], RunRecord]


class Transitions:
    """Changes run records. `fleet` tells what is registered, `now` the wall clock (UTC)."""

    def __init__(
        self, state: State, dispatcher: Dispatcher, fleet: Callable[[], Fleet], now: Callable[[], datetime] = utc_now
    ) -> None:
        self.state = state
        self.dispatcher = dispatcher
        self.fleet = fleet
        self.now = now

    async def find(self, run_id: str) -> Versioned[RunRecord] | None:
        """The run as far as this process knows, else as the store does; then this process knows it, or what it hears of
        it a moment later would be older than what it has acted on."""
        return self.state.view.run(run_id) or await self.state.newest_run(run_id)

    async def change(
        self, run_id: str, change: Change, *, puts: Sequence[Put] = (), start: bool = False
    ) -> RunRecord | None:
        """Apply `change` and everything that follows from it; the run afterwards, None if there is no such run.

        Only `start` opens the first steps: until its turn has come, a run waits, whatever else is written into it.

        `change` is called again on a newer record when somebody else wrote first, so it must be pure. `puts` are
        written in the same commit. Dispatches are published after it; if the bus cannot take them, the sweep will.
        """
        found = await self.find(run_id)
        while found is not None:
            before = found.record
            after = change(before)
            if after.steps or start:
                after = planner.advance(after, self.fleet(), self.now())
            if after is before:
                return before
            try:
                await self.state.commit(Put(keys.run(run_id), after, found.revision), *puts)
            except RevisionConflict:
                found = await self.state.run(run_id)
                continue
            _count(before, after)
            return await self.dispatch(after, steps.newly_issued(before, after))
        return None

    async def change_step(self, run: RunRecord, step: PlannedStep, state: StepState, change: Change) -> RunRecord:
        """As `change`, for as long as the step is open at the attempt and takeover of `state`, which was looked at;
        the run afterwards."""

        def guarded(record: RunRecord) -> RunRecord:
            return change(record) if record.is_open_at(step.id, state.attempt, state.takeover) else record

        return await self.change(run.run_id, guarded) or run

    async def end_step(
        self,
        run: RunRecord,
        step: PlannedStep,
        state: StepState,
        status: Status,
        why: str,
        *,
        claim: Claim | None = None,
    ) -> RunRecord:
        """End the step by the engine's own word, as `planner.end_step`, under the guard of `change_step`."""

        def end(record: RunRecord) -> RunRecord:
            return planner.end_step(record, step.id, status, why, self.now(), claim=claim)

        return await self.change_step(run, step, state, end)

    async def dispatch(self, run: RunRecord, issued: steps.OpenSteps) -> RunRecord:
        """Publish the dispatches of these steps; a step whose dispatch can never leave becomes Error."""
        issued = list(issued)
        if len(issued) < 2:  # nearly always: not worth a task
            refusals = [await self._publish(run, *one) for one in issued]
        else:
            refusals = await asyncio.gather(*(self._publish(run, *one) for one in issued))
        for (step, state), refusal in zip(issued, refusals, strict=True):
            if refusal is not None:
                run = await self.end_step(run, step, state, Status.ERROR, refusal)
        return run

    async def _publish(self, run: RunRecord, step: PlannedStep, state: StepState) -> str | None:
        """Publish one dispatch; why it can never leave, else None. One that the bus cannot take now is left: the sweep
        finds it missing."""
        try:
            await self.dispatcher.publish(run, step, state)
        except UndeliverableError as error:
            return str(error)
        except BusUnavailable as error:
            log.warning("a dispatch of run %s waits for the bus: %s", run.run_id, error)
        return None


@cache
def _of_driver(driver: str, status: Status) -> tuple[Counter, Histogram]:
    """The instruments for the steps of a driver that end so: looking them up costs more than using them."""
    finished = metrics.STEPS_FINISHED.labels(driver=driver, status=status.value)
    return finished, metrics.STEP_SECONDS.labels(driver=driver)


def _count(before: RunRecord, after: RunRecord) -> None:
    """The metrics of what ended by this transition."""
    for step in after.plan or ():
        state, old = after.steps.get(step.id), before.steps.get(step.id)
        if state is old or state is None or not state.status.terminal or (old is not None and old.status.terminal):
            continue
        finished, took = _of_driver(step.driver, state.status)
        finished.inc()
        if state.started_at is not None and state.finished_at is not None:
            took.observe((state.finished_at - state.started_at).total_seconds())
    if after.status.terminal and not before.status.terminal:
        metrics.RUNS_FINISHED.labels(pipeline=after.pipeline or "", status=after.status.value).inc()
