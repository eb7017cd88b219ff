"""Takes in what clients ask for: checked, written, answered. A write answered with success leads to a run that ends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from weakref import WeakValueDictionary

import uuid_utils

from conveyor_runtime.engine import planner, runs
from conveyor_runtime.engine.acceptance import Acceptance
from conveyor_runtime.engine.definitions import Definitions
from conveyor_runtime.engine.drafts import Draft, DraftChecker, check_names
from conveyor_runtime.engine.engine import Engine
from conveyor_runtime.errors import Conflict, NotFound
from conveyor_runtime.models import ResourceRecord, RunRecord
from conveyor_runtime.store import Put, keys


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
        self.definitions = Definitions(engine.state)
        self._acceptance = Acceptance(engine, self.definitions)
        self._drafts = DraftChecker(engine.state, self.definitions)
        # Within one process, writers of one resource wait for each other instead of undoing each other's work.
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    # -- resources -----------------------------------------------------------------------------------------------

    async def create(self, draft: Draft) -> Accepted:
        """Store a new resource and its first run. Raises InvalidInput, Unprocessable, Conflict, TooLarge."""
        check_names(draft)
        async with self._lock(draft.type, draft.name):
            return await self._create(draft)

    async def _create(self, draft: Draft) -> Accepted:
        draft, plan = await self._drafts.check(draft)
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
            priority=draft.priority,
            created_at=now,
            updated_at=now,
        )
        run = await self._acceptance.new_run(record, "create", plan)
        record = runs.owe(record, run)
        stored = await self._acceptance.write(run, Put(keys.resource(draft.type, draft.name), record, 0))
        if stored is None:
            found = await self._state.resource(draft.type, draft.name)
            raise self._exists(found.record) if found else Conflict("it was created and deleted meanwhile")
        self._acceptance.go_on(record, run)
        return Accepted(record, stored, run.run_id if run else "", created=True)

    async def update(self, draft: Draft, *, create_missing: bool = False) -> Accepted:
        """Replace a resource's spec, pipeline, priority and, if given, metadata. What changes nothing makes nothing.

        `create_missing` creates it where there is none (apply).
        """
        check_names(draft)
        async with self._lock(draft.type, draft.name):
            return await self._update(draft, create_missing)

    async def _update(self, draft: Draft, create_missing: bool) -> Accepted:
        found = await self._state.resource(draft.type, draft.name)
        if found is None:
            if create_missing:
                return await self._create(draft)
            raise NotFound(f"there is no {draft.type} named {draft.name}")
        draft, plan = await self._drafts.check(draft)
        while found is not None:
            old = found.record
            if old.deleting:
                raise Conflict(f"{draft.type}/{draft.name} is being deleted")
            record, makes_run = self._changed(old, draft)
            if record is old:
                return Accepted(old, found.revision, changed=False)
            run = await self._acceptance.new_run(record, "update", plan) if makes_run else None
            record = runs.owe(record, run)
            version = Put(keys.version(old.id, old.revision), old.as_resource())
            put = Put(keys.resource(draft.type, draft.name), record, found.revision)
            stored = await self._acceptance.write(run, version, put)
            if stored is not None:
                self._acceptance.go_on(record, run)
                return Accepted(record, stored, run.run_id if run else "")
            found = await self._state.resource(draft.type, draft.name)
        raise Conflict(f"{draft.type}/{draft.name} was deleted meanwhile")

    async def delete(self, type_: str, name: str, *, force: bool = False) -> Deleted:
        """Begin (or go on with) a resource's deletion: its runs end, then the drivers that asked clean up.

        By `force` no driver is asked: a delete under way is cancelled, and one without steps comes after it.
        """
        async with self._lock(type_, name):
            return await self._delete(type_, name, force)

    async def _delete(self, type_: str, name: str, force: bool) -> Deleted:
        found = await self._state.resource(type_, name)
        while found is not None:
            old = found.record
            under_way = old.last_delete
            if under_way is not None and not (force and await self._asks_drivers(under_way.run_id)):
                return Deleted(under_way.run_id, found.revision, gone=False)
            plan = () if force else await self._drafts.cleaners(old, self._engine.fleet())
            run = await self._acceptance.new_run(old, "delete", plan)
            assert run is not None
            record = runs.owe(old.model_copy(update={"deleting": True}), run)
            gone = run.status.terminal and old.active is None and not old.queue
            put = Put(keys.resource(type_, name), None if gone else record, found.revision)
            stored = await self._acceptance.write(run, put)
            if stored is not None:
                if gone:
                    await self._engine.forget_versions(old)
                else:
                    self._acceptance.go_on(record, run)
                return Deleted(run.run_id, stored, gone=gone)
            found = await self._state.resource(type_, name)
        raise NotFound(f"there is no {type_} named {name}")

    async def _asks_drivers(self, run_id: str) -> bool:
        """Whether this delete is one that drivers have steps of."""
        found = await self._transitions.find(run_id)
        return found is None or found.record.plan != ()

    async def rerun(self, run_id: str, *, only_the_last: bool = False) -> Accepted:
        """A new run of a run's resource as it is now, for the same event. Raises NotFound, Conflict, and what a spec
        that its definition no longer takes raises. `only_the_last` refuses it once there has been a newer run."""
        found = await self._state.run(run_id)
        if found is None:
            raise NotFound(f"there is no run {run_id}")
        async with self._lock(found.record.type, found.record.name):
            resource_id = (await self._state.run_input(found.record)).id
            return await self._rerun(found.record, resource_id, only_the_last)

    async def _rerun(self, earlier: RunRecord, resource_id: str, only_the_last: bool) -> Accepted:
        title = f"{earlier.type}/{earlier.name}"
        found = await self._state.resource(earlier.type, earlier.name)
        while found is not None and found.record.id == resource_id:
            old = found.record
            if old.deleting:
                raise Conflict(f"{title} is being deleted")
            newest = next((it.run_id for it in reversed(old.entries)), old.last_run)
            if only_the_last and newest != earlier.run_id:
                raise Conflict(f"{title} has had run {newest} since")
            _, plan = await self._drafts.check(Draft(old.type, old.name, old.spec, old.pipeline))
            run = await self._acceptance.new_run(old, earlier.event, plan)
            if run is None:
                raise Conflict(f"no driver takes {earlier.event} of {old.type}")
            record = runs.owe(old, run)
            stored = await self._acceptance.write(run, Put(keys.resource(old.type, old.name), record, found.revision))
            if stored is not None:
                self._acceptance.go_on(record, run)
                return Accepted(record, stored, run.run_id)
            found = await self._state.resource(old.type, old.name)
        raise NotFound(f"{title}, which run {earlier.run_id} was of, is gone")

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

    def _lock(self, type_: str, name: str) -> asyncio.Lock:
        return self._locks.setdefault((type_, name), asyncio.Lock())

    # -- inside --------------------------------------------------------------------------------------------------

    def _changed(self, old: ResourceRecord, draft: Draft) -> tuple[ResourceRecord, bool]:
        """The record with the draft in it, and whether that calls for a run; the same object if nothing changes."""
        metadata = old.metadata if draft.metadata is None else dict(draft.metadata)
        new_generation = draft.spec != old.spec or draft.pipeline != old.pipeline
        if not new_generation and (metadata, draft.priority) == (old.metadata, old.priority):
            return old, False
        update = {
            "metadata": metadata,
            "spec": draft.spec,
            "pipeline": draft.pipeline,
            "priority": draft.priority,
            "generation": old.generation + (1 if new_generation else 0),
            "revision": old.revision + 1,
            "updated_at": self._transitions.now(),
        }
        return old.model_copy(update=update), new_generation

    def _exists(self, record: ResourceRecord) -> Conflict:
        state = "is being deleted" if record.deleting else "exists already"
        return Conflict(f"{record.type}/{record.name} {state}")
