"""A new run, and the resource record that names it: written in this order, then acted on."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from conveyor_runtime.engine import planner, plans, runs
from conveyor_runtime.engine.definitions import Definitions
from conveyor_runtime.engine.engine import Engine
from conveyor_runtime.engine.validation import PIPELINE
from conveyor_runtime.errors import RevisionConflict
from conveyor_runtime.models import PlannedStep, ResourceRecord, RunRecord, Status
from conveyor_runtime.store import Put, keys


class Acceptance:
    """Makes runs of resources. Used by whoever has a reason for one: a client's write, or the sweep."""

    def __init__(self, engine: Engine, definitions: Definitions) -> None:
        self._engine = engine
        self._state = engine.state
        self._definitions = definitions

    async def new_run(
        self, record: ResourceRecord, event: str, plan: tuple[PlannedStep, ...] | None
    ) -> RunRecord | None:
        """A run of the record as it is, its first steps open; None for a built-in type nobody listens to. A resync goes
        to whom it is handed directly, not through `plan`."""
        fleet, now = self._engine.fleet(), self._engine.transitions.now()
        if record.type == PIPELINE and event != "delete" and not plans.plan_direct(PIPELINE, event, fleet):
            return None
        direct = event == "resync"
        pipeline = None if direct else await self._definitions.pipeline_of(record)
        run = runs.new(record, event, None if direct else plan, pipeline=pipeline, now=now)
        # A run whose turn is now is written with its first dispatches noted, which saves a commit; one that must wait
        # is planned no further than its steps.
        return planner.advance(run, fleet, now) if record.active is None else run

    async def write(self, run: RunRecord | None, *puts: Put) -> int | None:
        """Write the run, then `puts`, the last of which is the resource record that names it; that one's revision. None
        if somebody else wrote the record first.

        They leave in this order, but not as one: nobody acts on a run that no record names, and the sweep removes it. A
        run that has nothing to do is over as it is written, so it is written only together with what it did.
        """
        units = [runs.puts(run)] if run is not None else []
        units += [[put] for put in puts]
        if run is not None and run.status.terminal:
            units = [[put for unit in units for put in unit]]
        *others, stored = await asyncio.gather(*(self._state.commit(*unit) for unit in units), return_exceptions=True)
        for outcome in others:
            # A run whose key is taken is our own: its first write was stored unseen, and it has gone on since.
            if isinstance(outcome, BaseException) and not isinstance(outcome, RevisionConflict):
                raise outcome
        if not isinstance(stored, BaseException):
            return stored[-1]
        if not isinstance(stored, RevisionConflict):
            raise stored
        return await self._stored_unseen(run) if run is not None else None

    async def _stored_unseen(self, run: RunRecord) -> int | None:
        """The revision, if the record that names this run is stored after all: the answer to the first try got lost,
        and somebody has gone on from it since. If not, the run is removed."""
        resource, own = await self._state.resource(run.type, run.name), await self._state.run(run.run_id)
        if resource is not None and resource.record.names(run.run_id):
            return resource.revision
        if own is None or own.record.status is not Status.ACCEPTED:
            # One that has nothing to do is stored only with the record; another goes on only if a record names it.
            return own.revision if own is not None else None
        with suppress(RevisionConflict):
            await self._state.commit(Put(keys.run(run.run_id), None, own.revision))
            await self._state.commit(Put(keys.run_input(run.run_id), None))
        return None

    def go_on(self, record: ResourceRecord, run: RunRecord | None) -> None:
        """Have the engine act on what was written."""
        if run is None:
            return
        if record.is_active(run.run_id):
            self._engine.start(run.run_id)
        if record.queue or record.deleting or run.status.terminal:
            self._engine.settle(record.type, record.name)
