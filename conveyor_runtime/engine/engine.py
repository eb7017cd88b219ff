"""The engine's working loop: one run at a time per key, level-triggered. Whoever notices something adds the run's id;
`_work` looks at what is true and does what follows."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime

from pydantic import ValidationError

from conveyor_runtime.bus import Bus, Committer, Delivery, Puller, subjects
from conveyor_runtime.engine import planner, plans
from conveyor_runtime.engine.dispatcher import Dispatcher
from conveyor_runtime.engine.foreign import LOOK_PERIOD, ForeignDrivers, ForeignSteps
from conveyor_runtime.engine.liveness import Liveness
from conveyor_runtime.engine.nodes import Nodes
from conveyor_runtime.engine.ownership import Ownership
from conveyor_runtime.engine.plans import Fleet
from conveyor_runtime.engine.results import dead_letter, fold, run_id_of
from conveyor_runtime.engine.settle import Settler
from conveyor_runtime.engine.transitions import Transitions
from conveyor_runtime.errors import InfrastructureError
from conveyor_runtime.kit.keyed_queue import KeyedQueue
from conveyor_runtime.models import DriverRecord, PlannedStep, ResourceRecord, RunRecord, StepState, utc_now
from conveyor_runtime.store import State

log = logging.getLogger(__name__)

#: Times, a second apart, that a result is handed back because this engine cannot read its run.
_NEWER_ENGINE_TRIES = 20


class Engine:
    """Moves runs on. Any number of engines may share a bus."""

    def __init__(
        self, state: State, bus: Bus, messages: Committer, results: Puller, now: Callable[[], datetime] = utc_now
    ) -> None:
        self.state = state
        self._bus = bus
        self._results = results
        self.foreign = ForeignDrivers(state, bus)
        self.transitions = Transitions(state, Dispatcher(state, bus, messages), self.fleet, now)
        self.liveness = Liveness(state, bus)
        self.liveness.listen(self._died)
        self._ownership = Ownership(self.transitions, bus, self.liveness, Nodes(state.view, self.liveness))
        self._foreign_steps = ForeignSteps(self.transitions, bus)
        self._settler = Settler(self.transitions, start=self.start, cancelled=self.cancelled, later=self._settle_later)
        self._runs: KeyedQueue[str] = KeyedQueue(self._work, name="run")
        self._resources: KeyedQueue[tuple[str, str]] = KeyedQueue(self._settle, name="resource")
        self._inbox: dict[str, list[Delivery]] = defaultdict(list)
        self._starting: set[str] = set()
        self._setting_aside: set[asyncio.Task[None]] = set()
        self._fleet: tuple[tuple[Mapping[str, DriverRecord], frozenset[str]], Fleet] | None = None
        state.view.listen(self._noticed)

    def fleet(self) -> Fleet:
        """What is registered now; a foreign driver counts only while its consumer is there."""
        known = (self.state.view.drivers(), self.foreign.present)
        if self._fleet is None or self._fleet[0][0] is not known[0] or self._fleet[0][1] is not known[1]:
            drivers, present = known
            away = frozenset(name for name, it in drivers.items() if it.foreign and name not in present)
            self._fleet = known, Fleet({name: it for name, it in drivers.items() if name not in away}, away)
        return self._fleet[1]

    # -- what others call ----------------------------------------------------------------------------------------

    def start(self, run_id: str) -> None:
        """A run became active: publish what it names and see to it from now on."""
        self._starting.add(run_id)
        self._runs.add(run_id)

    def look(self, run_id: str) -> None:
        """Something about this run may have changed."""
        self._runs.add(run_id)

    def settle(self, type_: str, name: str) -> None:
        """Something about the runs of this resource may have changed."""
        self._resources.add((type_, name))

    def cancelled(self, run: RunRecord) -> None:
        """A cancel was written: act on it, and hasten the workers."""
        self._bus.publish_core(subjects.cancel_hint(run.run_id), b"")
        self._runs.add(run.run_id)

    def is_active(self, run: RunRecord) -> bool:
        """Whether its resource's turn is this run's."""
        found = self.state.view.resource(run.type, run.name)
        return found is not None and found.record.is_active(run.run_id)

    async def forget_versions(self, record: ResourceRecord) -> None:
        """Remove the earlier versions of a removed resource."""
        await self._settler.forget_versions(record)

    # -- loops ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take in results for ever. The supervisor runs this beside `liveness.run`, `foreign.run` and the sweep."""
        while True:
            delivery = await self._results.next()
            run_id = run_id_of(delivery)
            if run_id is None:
                # Beside the others: it may take long to be kept, and holds one slot of the puller meanwhile.
                task = asyncio.create_task(self._set_aside(delivery))
                self._setting_aside.add(task)
                task.add_done_callback(self._setting_aside.discard)
                continue
            self._inbox[run_id].append(delivery)
            self._runs.add(run_id)

    async def _set_aside(self, delivery: Delivery) -> None:
        try:
            await dead_letter(self._bus, delivery, "it names no run")
        except InfrastructureError as error:
            log.warning("a result nobody can read cannot be kept as a dead letter yet: %s", error)
            await delivery.nak(5.0)

    async def close(self) -> None:
        """Stop working; what is in hand goes back to the bus."""
        await self._results.stop()
        for task in list(self._setting_aside):
            task.cancel()
        await self._runs.close()
        await self._resources.close()

    # -- inside --------------------------------------------------------------------------------------------------

    def _settle_later(self, type_: str, name: str, seconds: float) -> None:
        self._resources.add_later((type_, name), seconds)

    async def _settle(self, key: tuple[str, str]) -> None:
        await self._settler.settle(*key)

    def _noticed(self, kind: str, parts: tuple[str, ...]) -> None:
        """The view changed: add the runs that it may concern."""
        if kind == "claim":
            claim = self.state.view.claim(parts[0], parts[1], int(parts[2]), int(parts[3]))
            if claim is not None and (claim.record.given_up or claim.record.timed_out):
                self._runs.add(parts[0])
        elif kind == "driver":
            for run_id in self.state.view.live_runs:
                self._runs.add(run_id)
        elif kind == "instance":
            self.liveness.noticed(parts[0])

    async def _work(self, run_id: str) -> None:
        run, moved_on = await self._take_in(run_id, self._inbox.pop(run_id, []))
        if run is None:
            return
        run = await self._progress(run, moved_on=moved_on)
        if run.status.terminal:
            self._starting.discard(run_id)
            self.settle(run.type, run.name)

    async def _take_in(self, run_id: str, deliveries: list[Delivery]) -> tuple[RunRecord | None, bool]:
        """The run with these results in it, and they off the bus; None if there is no run that can be read. Whether
        they changed it, and all that follows was done."""
        try:
            found = await self.transitions.find(run_id)
            run = before = found.record if found is not None else None
            if run is not None and deliveries:
                run = await fold(self.transitions, self._bus, run, deliveries)
            for delivery in deliveries:
                await delivery.ack()
            return run, run is not before
        except ValidationError as error:
            log.warning("run %s is left alone: its record cannot be read: %s", run_id, error)
            for delivery in deliveries:
                await self._leave_to_a_newer_engine(delivery)
            return None, False
        finally:
            # Those that are acked already stay so.
            for delivery in deliveries:
                await delivery.nak(1.0)

    async def _leave_to_a_newer_engine(self, delivery: Delivery) -> None:
        """Hand a result back whose run only another version can read, but not for ever: takeovers wait for it."""
        if delivery.num_delivered < _NEWER_ENGINE_TRIES:
            await delivery.nak(1.0)
        else:
            await dead_letter(self._bus, delivery, "the record of its run cannot be read")

    def _died(self, instance_id: str) -> None:
        """A worker died: look at every run it worked on."""
        for run_id in self.state.view.live_runs:
            if any(claim.instance == instance_id for _, claim in self.state.view.claims_of(run_id)):
                self._runs.add(run_id)

    async def _progress(self, run: RunRecord, *, moved_on: bool) -> RunRecord:
        """Everything that follows for this run from what is true now; `moved_on` by its own transition, it needs no
        other look at its plan."""
        if run.status.terminal:
            return run
        if run.plan is None and run.cancel is not None:
            return await self._end_if_cancelled(run)
        if not self.is_active(run) and not (run.cancel is not None and await self._became_active(run)):
            return await self._end_if_cancelled(run)
        if run.run_id in self._starting:
            noted = [(step, state) for step, state in run.open_steps() if state.issue > 0]
            run = await self.transitions.dispatch(run, noted)
            self._starting.discard(run.run_id)
        if not moved_on:
            run = await self.transitions.change(run.run_id, self._pinned, start=True) or run
        for step, state in list(run.open_steps()):
            run = await self._examine(run, step, state)
        self._plan_retries(run)
        return run

    async def _examine(self, run: RunRecord, step: PlannedStep, state: StepState) -> RunRecord:
        driver = self.state.view.driver(step.driver)
        if driver is None or not driver.foreign:
            return await self._ownership.examine(run, step, state, self._runs.add_later)
        run = await self._foreign_steps.examine(run, step, state)
        self._runs.add_later(run.run_id, LOOK_PERIOD)
        return run

    def _pinned(self, run: RunRecord) -> RunRecord:
        """The run with its plan, made now for direct runs, one step per driver that takes the event, and with the node
        of its resource's service."""
        found = self.state.view.resource(run.type, run.name)
        if found is not None and found.record.node is not None and not run.steps:
            run = run.model_copy(update={"home": found.record.node})
        if run.plan is not None:
            return run
        fleet = self.fleet()
        plan = plans.plan_direct(run.type, run.event, fleet)
        if not plan and run.event in ("create", "update"):
            return run
        return run.model_copy(update={"plan": plan})

    async def _became_active(self, run: RunRecord) -> bool:
        """Whether the store says that it is this run's turn, where our own view may be a moment behind."""
        found = await self.state.resource(run.type, run.name)
        return found is not None and found.record.is_active(run.run_id)

    async def _end_if_cancelled(self, run: RunRecord) -> RunRecord:
        """A run whose turn has not come, or that has no plan yet, ends at once when it is cancelled."""
        if run.cancel is None:
            return run
        cancel, now = run.cancel, self.transitions.now()

        def change(record: RunRecord) -> RunRecord:
            return planner.end_unstarted(record, cancel.reason, now)

        return await self.transitions.change(run.run_id, change) or run

    def _plan_retries(self, run: RunRecord) -> None:
        dues = [due for it in run.steps.values() if (due := it.goes_on_at) is not None]
        if dues:
            self._runs.add_later(run.run_id, max((min(dues) - self.transitions.now()).total_seconds(), 0.0))
