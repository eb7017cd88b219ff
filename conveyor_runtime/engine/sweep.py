"""Closes every gap a crash can leave between two writes: at start, every minute, after each reconnect.

It walks runs that are not terminal and resources that owe runs; whatever it finds it hands to the engine's ordinary
loop, which does nothing where nothing is amiss.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from conveyor_runtime.bus import Bus, subjects
from conveyor_runtime.bus.consumers import consumer_info
from conveyor_runtime.bus.messages import next_by_subject
from conveyor_runtime.bus.streams import MESSAGES
from conveyor_runtime.engine import intray, outtray, planner
from conveyor_runtime.engine.dispatcher import dispatch_id, dispatch_subject
from conveyor_runtime.engine.engine import Engine
from conveyor_runtime.engine.resync import Resync
from conveyor_runtime.errors import BusUnavailable, InfrastructureError, RevisionConflict
from conveyor_runtime.models import PlannedStep, ResourceRecord, RunRecord, Status, StepState
from conveyor_runtime.store import Put, Versioned, keys

log = logging.getLogger(__name__)

PERIOD = 60.0

#: A run that no resource record names this long after it was written was never accepted.
ORPHAN_AGE = timedelta(minutes=1)

#: Leases of processes dead this long are forgotten.
DEAD_INSTANCE_AGE = timedelta(hours=1)

#: Time after its issue was noted before a dispatch is looked for: it may be about to be published. Not more than a
#: courtesy: what is published twice is claimed once.
_SETTLING = timedelta(seconds=5)

#: Waiting messages of a subject looked at in one sweep. Where more wait, what is not among them counts as waiting, and
#: the sweep that meets a shorter queue tells.
_MOST_LOOKED_AT = 1000


@dataclass
class _Waiting:
    """What waits on one subject, read as far as was asked for: the Msg-Ids before `upto` (None = no consumer)."""

    upto: int | None
    ids: set[str] = field(default_factory=set)


class Sweep:
    """The engine's safety net. `now()` makes it run at once."""

    def __init__(self, engine: Engine, bus: Bus) -> None:
        self._engine = engine
        self._state = engine.state
        self._transitions = engine.transitions
        self._bus = bus
        self._resync = Resync(engine)
        self._wake = asyncio.Event()
        bus.add_connection_listener(lambda connected: self._wake.set() if connected else None)

    async def run(self) -> None:
        """Sweep now, then every minute, after each reconnect, and when a consumer was made: it may stand in for one
        that was deleted, whose messages were thrown away."""
        made = f"$JS.EVENT.ADVISORY.CONSUMER.CREATED.{MESSAGES}.>"
        unsubscribe = await self._bus.subscribe_core(made, lambda message: self._wake.set())
        try:
            await self._run()
        finally:
            await unsubscribe()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self.sweep()
            except InfrastructureError as error:
                log.warning("the sweep stopped half-way and is made again: %s", error)
            try:
                async with asyncio.timeout(PERIOD):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def sweep(self) -> None:
        """One walk over everything that is not finished. What one thing fails at does not stop the others."""
        resources = list(self._state.view.resources())
        for resource in resources:
            if resource.record.active or resource.record.queue:
                self._engine.settle(resource.record.type, resource.record.name)
        waiting: dict[str, _Waiting] = {}
        for run_id in sorted(self._state.view.live_runs):
            await self._apart(f"run {run_id}", self._look_at(run_id, waiting))
        await self._apart("resources to be seen again", self._resync.round(resources))
        await self._apart("leases of dead processes", self._forget_dead_instances())
        await self._apart("results that were taken in", intray.throw_away(self._bus))
        await self._apart("dispatches that were worked off", outtray.throw_away(self._bus, self._state))

    async def _apart(self, what: str, work: Coroutine[Any, Any, object]) -> None:
        """Do this by itself. Raises only BusUnavailable, which the rest would meet as well."""
        try:
            await work
        except BusUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this one's alone
            log.warning("the sweep leaves %s alone: %s", what, error)

    async def _look_at(self, run_id: str, waiting: dict[str, _Waiting]) -> None:
        found = self._state.view.run(run_id)
        if found is None or await self._remove_orphan(found):
            return
        if self._engine.is_active(found.record):
            await self._issue_again(found.record, waiting)
        self._engine.look(run_id)

    async def _remove_orphan(self, found: Versioned[RunRecord]) -> bool:
        """Remove a run that was never accepted; True if this was one."""
        run = found.record
        if run.status is not Status.ACCEPTED or self._transitions.now() - run.created_at < ORPHAN_AGE:
            return False
        # The view first: a backlog is full of runs that were accepted and wait.
        if _names(self._state.view.resource(run.type, run.name), run):
            return False
        if _names(await self._state.resource(run.type, run.name), run):
            return False
        try:
            await self._state.commit(
                Put(keys.run(run.run_id), None, found.revision), Put(keys.run_input(run.run_id), None)
            )
        except RevisionConflict:
            return False
        log.info("run %s was never accepted and is removed", run.run_id)
        return True

    async def _issue_again(self, run: RunRecord, waiting: dict[str, _Waiting]) -> None:
        """Publish once more each dispatch that nobody claimed and whose message no longer waits."""
        for step, state in list(run.open_steps()):
            driver = self._state.view.driver(step.driver)
            if driver is None or driver.foreign or state.issue == 0 or state.issued_at is None or run.cancels(step):
                continue
            if self._state.view.claim(run.run_id, step.id, state.attempt, state.takeover) is not None:
                continue
            if self._transitions.now() - state.issued_at < _SETTLING:
                continue
            if await self._still_waits(run, step, state, waiting):
                continue
            log.info("step %s of run %s is issued again: its message is gone", step.id, run.run_id)

            def change(record: RunRecord, step_id: str = step.id, issue: int = state.issue) -> RunRecord:
                if record.steps[step_id].issue != issue:
                    return record
                return planner.reissue(record, step_id, self._transitions.fleet(), self._transitions.now())

            await self._transitions.change_step(run, step, state, change)

    async def _still_waits(
        self, run: RunRecord, step: PlannedStep, state: StepState, waiting: dict[str, _Waiting]
    ) -> bool:
        """Whether this very dispatch, by its Msg-Id, is among those that nobody was handed yet."""
        if state.node is not None:
            consumer = subjects.node_consumer(step.driver, state.node)
        else:
            consumer = subjects.driver_consumer(step.driver)
        subject = dispatch_subject(run, step, state)
        if subject not in waiting:
            info = await consumer_info(self._bus, MESSAGES, consumer)
            waiting[subject] = _Waiting(int(info["delivered"]["stream_seq"]) + 1 if info else None)
        return await self._is_among(waiting[subject], subject, dispatch_id(run, step, state))

    async def _is_among(self, waiting: _Waiting, subject: str, msg_id: str) -> bool:
        """Whether it waits on this subject. True as well where that cannot be told: it is looked at again."""
        if waiting.upto is None:
            # No consumer: a message published now would be thrown away. Its driver makes one when it starts.
            return True
        while msg_id not in waiting.ids:
            if len(waiting.ids) >= _MOST_LOOKED_AT:
                return True
            message = await next_by_subject(self._bus, MESSAGES, subject, waiting.upto)
            if message is None:
                return False
            waiting.ids.add(message.headers.get("Nats-Msg-Id", f"#{message.seq}"))
            waiting.upto = message.seq + 1
        return True

    async def _forget_dead_instances(self) -> None:
        now = self._transitions.now()
        working = {
            claim.instance for run_id in self._state.view.live_runs for _, claim in self._state.view.claims_of(run_id)
        }
        for found in list(self._state.view.instances()):
            old = now - found.record.renewed_at > DEAD_INSTANCE_AGE
            if old and found.record.id not in working and self._engine.liveness.is_dead(found.record.id):
                try:
                    await self._state.commit(Put(keys.instance(found.record.id), None, found.revision))
                except RevisionConflict:
                    continue


def _names(resource: Versioned[ResourceRecord] | None, run: RunRecord) -> bool:
    return resource is not None and any(entry.run_id == run.run_id for entry in resource.record.entries)
