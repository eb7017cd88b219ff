"""A new run, and the resource record that names it: written as one, then acted on."""

from __future__ import annotations

from conveyor_runtime.engine import planner, plans
from conveyor_runtime.engine.definitions import Definitions
from conveyor_runtime.engine.engine import Engine
from conveyor_runtime.engine.settle import new_run_id, run_puts
from conveyor_runtime.engine.validation import PIPELINE
from conveyor_runtime.errors import RevisionConflict
from conveyor_runtime.models import Entry, PlannedStep, ResourceRecord, RunRecord, Status
from conveyor_runtime.store import Put


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
        run = RunRecord(
            run_id=new_run_id(),
            type=record.type,
            name=record.name,
            event=event,
            generation=record.generation,
            status=Status.ACCEPTED,
            pipeline=await self._definitions.pipeline_of(record) if event != "resync" else None,
            resource=record.as_resource(),
            plan=plan if event != "resync" else None,
            created_at=now,
        )
        # A run whose turn is now is written with its first dispatches noted, which saves a commit; one that must wait
        # is planned no further than its steps.
        return planner.advance(run, fleet, now) if record.active is None else run

    async def write(self, run: RunRecord | None, *puts: Put) -> int | None:
        """Commit the run and the resource record that names it, last of `puts`, all or nothing; the record's revision.
        None if somebody else wrote first."""
        try:
            return (await self._state.commit(*(run_puts(run) if run is not None else ()), *puts))[-1]
        except RevisionConflict:
            ours = await self._state.run(run.run_id) if run is not None else None
            if ours is None:
                return None
            # All of it is stored: the answer to the first try got lost, and somebody has gone on from it since.
            found = await self._state.resource(ours.record.type, ours.record.name)
            return found.revision if found is not None else ours.revision

    def go_on(self, record: ResourceRecord, run: RunRecord | None) -> None:
        """Have the engine act on what was written."""
        if run is None:
            return
        if record.active is not None and record.active.run_id == run.run_id:
            self._engine.start(run.run_id)
        if record.queue or record.deleting or run.status.terminal:
            self._engine.settle(record.type, record.name)


def owe(record: ResourceRecord, run: RunRecord | None) -> ResourceRecord:
    """The record with a run to do: active if nothing is, else at the end of the queue."""
    if run is None:
        return record
    entry = Entry(run_id=run.run_id, event=run.event, generation=run.generation)
    if record.active is None:
        return record.model_copy(update={"active": entry})
    return record.model_copy(update={"queue": (*record.queue, entry)})
