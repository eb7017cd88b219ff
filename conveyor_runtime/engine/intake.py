"""Takes in what clients ask for: checked, written, answered. A write answered with success leads to a run that ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import uuid_utils

from conveyor_runtime.engine import planner
from conveyor_runtime.engine.engine import Engine
from conveyor_runtime.engine.settle import new_run_id, run_puts
from conveyor_runtime.engine.validation import PIPELINE, SpecValidator, builtin_definition, check_size, parse
from conveyor_runtime.errors import (
    BusUnavailable,
    Conflict,
    InvalidInput,
    NotFound,
    Problem,
    RevisionConflict,
    Unprocessable,
)
from conveyor_runtime.models import (
    NAME_RULE,
    Entry,
    PipelineSpec,
    PlannedStep,
    ResourceDefinition,
    ResourceRecord,
    RunRecord,
    Status,
    is_name,
)
from conveyor_runtime.models.message import META_OUTPUT, META_RESULT
from conveyor_runtime.store import Put, Versioned, keys

#: A write that took longer than this may have lost its run to the sweep, which waits a minute.
_SLOW = timedelta(seconds=30)


@dataclass(frozen=True)
class Draft:
    """A resource as a client wrote it. `metadata` None = left out: what is stored stays."""

    type: str
    name: str
    spec: Any
    pipeline: str | None = None
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Accepted:
    """What became of a write: the record, its store revision, the run it led to ("" = none was needed)."""

    record: ResourceRecord
    revision: int
    run_id: str = ""
    created: bool = False
    changed: bool = True


@dataclass(frozen=True)
class Deleted:
    """What became of a delete: `gone` = the record is removed already, else its delete run is under way."""

    run_id: str
    revision: int
    gone: bool


class Intake:
    """The writing half of the control plane."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._state = engine.state
        self._transitions = engine.transitions
        self._validator = SpecValidator()

    # -- resources -----------------------------------------------------------------------------------------------

    async def create(self, draft: Draft) -> Accepted:
        """Store a new resource and its first run. Raises InvalidInput, Unprocessable, Conflict, TooLarge."""
        draft, plan = await self._check(draft)
        if self._state.view.resource(draft.type, draft.name) is not None:
            # Another engine may have removed it a moment ago, so only the store can say no.
            known = await self._state.resource(draft.type, draft.name)
            if known is not None:
                raise self._exists(known.record)
        now = self._transitions.now()
        record = ResourceRecord(
            id=str(uuid_utils.uuid4()),
            type=draft.type,
            name=draft.name,
            pipeline=draft.pipeline,
            metadata=dict(draft.metadata or {}),
            spec=draft.spec,
            created_at=now,
            updated_at=now,
        )
        run = self._new_run(record, "create", plan)
        record = _owe(record, run)
        revision = await self._write_run(run)
        try:
            [stored] = await self._state.commit(Put(keys.resource(draft.type, draft.name), record, 0))
        except RevisionConflict:
            await self._forget_run(run, revision)
            found = await self._state.resource(draft.type, draft.name)
            raise (self._exists(found.record) if found else Conflict("it was created and deleted meanwhile")) from None
        await self._go_on(record, run)
        return Accepted(record, stored, run.run_id if run else "", created=True)

    async def update(self, draft: Draft, *, create_missing: bool = False) -> Accepted:
        """Replace a resource's spec, pipeline and, if given, metadata. What changes nothing makes nothing.

        `create_missing` creates it where there is none (apply).
        """
        found = await self._state.resource(draft.type, draft.name)
        if found is None:
            if create_missing:
                return await self.create(draft)
            raise NotFound(f"there is no {draft.type} named {draft.name}")
        draft, plan = await self._check(draft)
        run: RunRecord | None = None
        revision = 0
        while found is not None:
            old = found.record
            if old.deleting:
                raise Conflict(f"{draft.type}/{draft.name} is being deleted")
            record, makes_run = self._changed(old, draft)
            if record is old:
                await self._forget_run(run, revision)
                return Accepted(old, found.revision, changed=False)
            await self._forget_run(run, revision)
            run = self._new_run(record, "update", plan) if makes_run else None
            record = _owe(record, run)
            revision = await self._write_run(run)
            version = Put(keys.version(old.id, old.revision), old.as_resource())
            try:
                stored = await self._state.commit(
                    version, Put(keys.resource(draft.type, draft.name), record, found.revision)
                )
            except RevisionConflict:
                found = await self._state.resource(draft.type, draft.name)
                continue
            await self._go_on(record, run)
            return Accepted(record, stored[1], run.run_id if run else "")
        await self._forget_run(run, revision)
        raise Conflict(f"{draft.type}/{draft.name} was deleted meanwhile")

    async def delete(self, type_: str, name: str) -> Deleted:
        """Begin (or go on with) a resource's deletion: its runs end, then the drivers that asked clean up."""
        found = await self._state.resource(type_, name)
        while found is not None:
            old = found.record
            under_way = next((entry for entry in old.entries if entry.event == "delete"), None)
            if under_way is not None:
                return Deleted(under_way.run_id, found.revision, gone=False)
            plan = planner.plan_delete(type_, await self._pipeline_steps(old), self._engine.fleet())
            run = self._new_run(old, "delete", plan)
            assert run is not None
            revision = await self._write_run(run)
            record = _owe(old.model_copy(update={"deleting": True}), run)
            try:
                if run.status.terminal and old.active is None and not old.queue:
                    [stored] = await self._state.commit(Put(keys.resource(type_, name), None, found.revision))
                    await self._engine.forget_versions(old)
                    return Deleted(run.run_id, stored, gone=True)
                [stored] = await self._state.commit(Put(keys.resource(type_, name), record, found.revision))
            except RevisionConflict:
                await self._forget_run(run, revision)
                found = await self._state.resource(type_, name)
                continue
            await self._go_on(record, run)
            return Deleted(run.run_id, stored, gone=False)
        raise NotFound(f"there is no {type_} named {name}")

    async def cancel(self, run_id: str, *, who: str, why: str) -> RunRecord:
        """Ask a run to end. A terminal run is answered as it is. Raises NotFound."""
        found = await self._state.run(run_id)
        if found is None:
            raise NotFound(f"there is no run {run_id}")
        run = found.record
        if not run.status.terminal:
            now = self._transitions.now()
            run = await self._transitions.change(run_id, lambda it: planner.cancel(it, who, why, now)) or run
            self._engine.cancelled(run)
        return run

    # -- definitions ---------------------------------------------------------------------------------------------

    def definition(self, type_: str) -> ResourceDefinition | None:
        """The definition of a type, the built-in one included."""
        if type_ == PIPELINE:
            return builtin_definition()
        found = self._state.view.definition(type_)
        return found.record if found else None

    async def write_definition(
        self, definition: ResourceDefinition, *, may_exist: bool, must_exist: bool = False
    ) -> tuple[ResourceDefinition, int]:
        """Store a definition; the stored one and its revision. Raises InvalidInput, Conflict, NotFound."""
        name = definition.name
        if not is_name(name):
            raise InvalidInput(f"name: must be {NAME_RULE}", [Problem("/name", f"must be {NAME_RULE}")])
        if name == PIPELINE:
            raise Conflict(f"the type {PIPELINE} is built in and cannot be redefined")
        self._validator.check_schema(definition)
        while True:
            found = await self._state.definition(name)
            if found is None and must_exist:
                raise NotFound(f"there is no resource definition named {name}")
            if found is not None and not may_exist:
                raise Conflict(f"a resource definition named {name} exists already")
            definition = definition.model_copy(update={"id": found.record.id if found else str(uuid_utils.uuid4())})
            if found is not None and found.record == definition:
                return definition, found.revision
            try:
                put = Put(keys.definition(name), definition, found.revision if found else 0)
                [revision] = await self._state.commit(put)
            except RevisionConflict:
                continue
            return definition, revision

    async def delete_definition(self, name: str) -> int:
        """Remove a definition; its resources stay. The revision of the delete. Raises NotFound."""
        if await self._state.definition(name) is None:
            raise NotFound(f"there is no resource definition named {name}")
        [revision] = await self._state.commit(Put(keys.definition(name), None))
        return revision

    # -- inside --------------------------------------------------------------------------------------------------

    async def _check(self, draft: Draft) -> tuple[Draft, tuple[PlannedStep, ...] | None]:
        """The draft as it will be stored, and the plan of its runs (None = a direct run)."""
        for field, value in (("name", draft.name), ("resource", draft.type)):
            if not isinstance(value, str) or not is_name(value):
                raise InvalidInput(f"{field}: must be {NAME_RULE}", [Problem(f"/{field}", f"must be {NAME_RULE}")])
        draft = Draft(draft.type, draft.name, draft.spec, draft.pipeline or None, _own_metadata(draft.metadata))
        if draft.type == PIPELINE:
            return await self._check_pipeline(draft), None
        definition = self.definition(draft.type) or _record(await self._state.definition(draft.type))
        if definition is None:
            raise Unprocessable(
                f"there is no resource definition named {draft.type}; create it with POST /resource-definitions"
            )
        self._validator.check(definition, draft.spec)
        pipeline = draft.pipeline or definition.pipeline
        return draft, await self._plan(draft.type, pipeline) if pipeline else None

    async def _check_pipeline(self, draft: Draft) -> Draft:
        check_size(draft.spec)
        spec = parse(PipelineSpec, draft.spec, "the pipeline").with_ids()
        if self.definition(spec.resource) is None and await self._state.definition(spec.resource) is None:
            raise Unprocessable(f"there is no resource definition named {spec.resource}, which the pipeline is for")
        stored = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        return Draft(draft.type, draft.name, stored, None, draft.metadata)

    async def _plan(self, type_: str, pipeline: str) -> tuple[PlannedStep, ...]:
        if not is_name(pipeline):
            raise InvalidInput(f"pipeline: must be {NAME_RULE}", [Problem("/pipeline", f"must be {NAME_RULE}")])
        found = self._state.view.resource(PIPELINE, pipeline) or await self._state.resource(PIPELINE, pipeline)
        if found is None:
            raise Unprocessable(f"there is no pipeline named {pipeline}")
        spec = PipelineSpec.model_validate(found.record.spec)
        if spec.resource != type_:
            problem = f"pipeline {pipeline} is for {spec.resource}, not for {type_}"
            raise InvalidInput(problem, [Problem("/pipeline", problem)])
        return planner.plan_pipeline(spec)

    async def _pipeline_steps(self, record: ResourceRecord) -> tuple[PlannedStep, ...]:
        """The steps of the pipeline a resource has now; none if it has none or it is gone."""
        definition = self.definition(record.type)
        pipeline = record.pipeline or (definition.pipeline if definition else None)
        if record.type == PIPELINE or not pipeline:
            return ()
        try:
            return await self._plan(record.type, pipeline)
        except (InvalidInput, Unprocessable):
            return ()

    def _changed(self, old: ResourceRecord, draft: Draft) -> tuple[ResourceRecord, bool]:
        """The record with the draft in it, and whether that calls for a run; the same object if nothing changes."""
        metadata = old.metadata if draft.metadata is None else dict(draft.metadata)
        new_generation = draft.spec != old.spec or draft.pipeline != old.pipeline
        if not new_generation and metadata == old.metadata:
            return old, False
        update = {
            "metadata": metadata,
            "spec": draft.spec,
            "pipeline": draft.pipeline,
            "generation": old.generation + (1 if new_generation else 0),
            "revision": old.revision + 1,
            "updated_at": self._transitions.now(),
        }
        return old.model_copy(update=update), new_generation

    def _new_run(self, record: ResourceRecord, event: str, plan: tuple[PlannedStep, ...] | None) -> RunRecord | None:
        """A run of the record as it is, its first steps open; None for a built-in type nobody listens to."""
        fleet, now = self._engine.fleet(), self._transitions.now()
        if record.type == PIPELINE and event != "delete" and not planner.plan_direct(PIPELINE, event, fleet):
            return None
        definition = self.definition(record.type)
        run = RunRecord(
            run_id=new_run_id(),
            type=record.type,
            name=record.name,
            event=event,
            generation=record.generation,
            status=Status.ACCEPTED,
            pipeline=record.pipeline or (definition.pipeline if definition else None),
            resource=record.as_resource(),
            plan=plan,
            created_at=now,
        )
        # A run whose turn is now is written with its first dispatches noted, which saves a commit; one that must wait
        # is planned no further than its steps.
        return planner.advance(run, fleet, now) if record.active is None else run

    async def _write_run(self, run: RunRecord | None) -> int:
        return (await self._state.commit(*run_puts(run)))[-1] if run else 0

    async def _forget_run(self, run: RunRecord | None, revision: int) -> None:
        """Remove a run that was never accepted; if that fails, the sweep does it."""
        if run is not None:
            await self._state.commit(Put(keys.run(run.run_id), None, revision), Put(keys.run_input(run.run_id), None))

    async def _go_on(self, record: ResourceRecord, run: RunRecord | None) -> None:
        if run is None:
            return
        if self._transitions.now() - run.created_at > _SLOW and await self._state.run(run.run_id) is None:
            # This process stood still between its two writes, and a sweep took the run for one never accepted.
            self._engine.settle(record.type, record.name)
            raise BusUnavailable("the write took so long that its run was removed; try again")
        if record.active is not None and record.active.run_id == run.run_id:
            self._engine.start(run.run_id)
        if record.queue or record.deleting or run.status.terminal:
            self._engine.settle(record.type, record.name)

    def _exists(self, record: ResourceRecord) -> Conflict:
        state = "is being deleted" if record.deleting else "exists already"
        return Conflict(f"{record.type}/{record.name} {state}")


def _owe(record: ResourceRecord, run: RunRecord | None) -> ResourceRecord:
    """The record with a run to do: active if nothing is, else at the end of the queue."""
    if run is None:
        return record
    entry = Entry(run_id=run.run_id, event=run.event, generation=run.generation)
    if record.active is None:
        return record.model_copy(update={"active": entry})
    return record.model_copy(update={"queue": (*record.queue, entry)})


def _own_metadata(metadata: Mapping[str, str] | None) -> dict[str, str] | None:
    """The client's own metadata: what the runtime adds when it shows a resource is taken off again."""
    if metadata is None:
        return None
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidInput("metadata values must be strings", [Problem(f"/metadata/{key}", "must be a string")])
    return {
        key: value
        for key, value in metadata.items()
        if key != "version" and not key.startswith((META_RESULT, META_OUTPUT, "cv."))
    }


def _record(found: Versioned[ResourceDefinition] | None) -> ResourceDefinition | None:
    return found.record if found else None
