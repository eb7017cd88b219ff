"""Typed access to the state: records in, records out, the view kept current with our own writes."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

from conveyor_runtime.errors import RevisionConflict
from conveyor_runtime.models import (
    Claim,
    DriverRecord,
    Instance,
    Meta,
    Model,
    NodeUse,
    Overtakers,
    RateState,
    Resource,
    ResourceDefinition,
    ResourceRecord,
    RunRecord,
    StepState,
    utc_now,
)
from conveyor_runtime.store import keys
from conveyor_runtime.store.base import Change, Store, Write
from conveyor_runtime.store.versioned import Versioned
from conveyor_runtime.store.view import View

M = TypeVar("M", bound=Model)


class Blob:
    """Any JSON value, to be written like a record."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def encode(self) -> bytes:
        """The JSON that is stored."""
        return orjson.dumps(self.value)


@dataclass(frozen=True, slots=True)
class Put:
    """A record to be written under `key`; None deletes. `expect` as in `Write`."""

    key: str
    record: Model | Blob | None
    expect: int | None = None


class State:
    """The store with types. `view` is None in processes that only read by key (drivers)."""

    def __init__(self, store: Store, view: View | None = None) -> None:
        self.store = store
        self._view = view

    @property
    def view(self) -> View:
        """The read model."""
        assert self._view is not None, "this process keeps no view"
        return self._view

    async def commit(self, *puts: Put, timeout: float = 10.0) -> list[int]:
        """Write all or nothing; the revisions. Raises as `Store.commit`."""
        writes = [Write(put.key, None if put.record is None else put.record.encode(), put.expect) for put in puts]
        revisions = await self.store.commit(writes, timeout=timeout)
        if self._view is not None:
            self._view.committed = max(self._view.committed, *revisions)
            for put, write, revision in zip(puts, writes, revisions, strict=True):
                record = put.record if isinstance(put.record, Model) else None
                self._view.apply(Change(put.key, write.value, revision), record)
        return revisions

    async def _read(self, key: str, model: type[M]) -> Versioned[M] | None:
        stored = await self.store.get(key)
        return Versioned(stored.revision, model, stored.value) if stored else None

    async def resource(self, type_: str, name: str) -> Versioned[ResourceRecord] | None:
        """A resource, from the leader."""
        return await self._read(keys.resource(type_, name), ResourceRecord)

    async def version(self, resource_id: str, revision: int) -> Versioned[Resource] | None:
        """An earlier revision of a resource."""
        return await self._read(keys.version(resource_id, revision), Resource)

    async def run(self, run_id: str) -> Versioned[RunRecord] | None:
        """A run, from the leader."""
        return await self._read(keys.run(run_id), RunRecord)

    async def newest_run(self, run_id: str) -> Versioned[RunRecord] | None:
        """As `run`; the view knows it from now on."""
        found = await self.run(run_id)
        if found is not None:
            self.view.apply(Change(keys.run(run_id), found.raw, found.revision), found.record)
        return found

    async def run_input(self, run: RunRecord) -> Resource:
        """The resource the run pinned, wherever it lies."""
        if run.resource is not None:
            return run.resource
        found = await self._read(keys.run_input(run.run_id), Resource)
        if found is None:
            raise LookupError(f"the input of run {run.run_id} is not stored")
        return found.record

    async def step_data(self, step: StepState) -> Any:
        """What a step's driver reported, wherever it lies; None if it is stored no more."""
        if step.data_key is None:
            return step.data
        stored = await self.store.get(step.data_key)
        return orjson.loads(stored.value) if stored else None

    async def claim(self, run_id: str, step: str, attempt: int, takeover: int) -> Versioned[Claim] | None:
        """A claim, from the leader."""
        return await self._read(keys.claim(run_id, step, attempt, takeover), Claim)

    async def instance(self, instance_id: str) -> Versioned[Instance] | None:
        """A process's lease, from the leader."""
        return await self._read(keys.instance(instance_id), Instance)

    async def instances(self) -> list[Instance]:
        """Every lease there is."""
        return [Instance.model_validate_json(stored.value) for stored in await self.store.list("instance.")]

    async def driver(self, name: str) -> Versioned[DriverRecord] | None:
        """A driver's record, from the leader."""
        return await self._read(keys.driver(name), DriverRecord)

    async def node_use(self, node: str) -> Versioned[NodeUse] | None:
        """What runs hold of a node, from the leader."""
        return await self._read(keys.node(node), NodeUse)

    async def rate(self, driver: str) -> Versioned[RateState] | None:
        """A driver's token bucket, from the leader."""
        return await self._read(keys.rate(driver), RateState)

    async def overtakers(self, driver: str) -> Versioned[Overtakers] | None:
        """The dispatches of a driver that come before others, from the leader."""
        return await self._read(keys.overtakers(driver), Overtakers)

    async def definition(self, type_: str) -> Versioned[ResourceDefinition] | None:
        """A definition, from the leader."""
        return await self._read(keys.definition(type_), ResourceDefinition)

    async def meta(self) -> Meta | None:
        """Who this installation is, if it has been decided."""
        found = await self._read(keys.META, Meta)
        return found.record if found is not None else None

    async def ensure_meta(self) -> Meta:
        """Who this installation is; the first process to ask decides."""
        while True:
            found = await self._read(keys.META, Meta)
            if found is not None:
                return found.record
            meta = Meta(installation=secrets.token_hex(4), epoch=secrets.token_hex(8), created_at=utc_now())
            with suppress(RevisionConflict):
                await self.commit(Put(keys.META, meta, 0))
