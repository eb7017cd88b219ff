"""The read model: every key of the bucket, kept current by its changes and by our own writes.

Records are decoded when somebody first looks at them: a process that only lists a page pays for that page. What cannot
be decoded, of a newer version or by somebody else's hand, is set aside with one warning: as if it were not there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import TypeVar, cast

from pydantic import ValidationError

from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.models import (
    Claim,
    DriverRecord,
    Instance,
    Model,
    ResourceDefinition,
    ResourceRecord,
    RunRecord,
    Status,
)
from conveyor_runtime.store.base import Change, Store, Watch
from conveyor_runtime.store.run_index import ALL, Facts, RunIndex, still_under_way
from conveyor_runtime.store.versioned import Versioned

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Model)

_MODELS: dict[str, type[Model]] = {
    "resource": ResourceRecord,
    "run": RunRecord,
    "claim": Claim,
    "instance": Instance,
    "driver": DriverRecord,
    "definition": ResourceDefinition,
}

#: Parts of a key after its kind, where they are not one: a key that somebody else made must not stop the view.
_PARTS = {"resource": 2, "claim": 4}

_KNOWN = {"", *(status.value for status in Status)}

#: Runs that ended last whose records stay decoded: what follows an end looks at them once more. Of the others there are
#: too many.
_ENDED_DECODED = 1000

#: Called with the kind of key (`run`, `claim`, ...) and the rest of the key's parts.
Listener = Callable[[str, tuple[str, ...]], None]


class View:
    """All records by kind and key parts; `runs` finds those of runs. `start()` returns once the state as of now has
    been read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kinds: dict[str, dict[tuple[str, ...], Versioned[Model]]] = {kind: {} for kind in _MODELS}
        self._claims_of_run: dict[str, set[tuple[str, ...]]] = {}
        self.runs = RunIndex()
        self._ended: deque[Versioned[Model]] = deque()
        self._drivers: dict[str, DriverRecord] | None = None
        self._deleted: dict[tuple[str, tuple[str, ...]], int] = {}
        self._listeners: list[Listener] = []
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self.revision = 0
        self.committed = 0

    async def start(self) -> None:
        """Read everything, then follow."""
        watch = self._store.watch()
        self._task = asyncio.create_task(self._follow(watch), name="view")
        caught_up = asyncio.ensure_future(watch.wait_caught_up())
        await asyncio.wait({caught_up, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            caught_up.cancel()
            await self._task

    async def stop(self) -> None:
        """Stop following."""
        if self._task:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def wait_failed(self) -> None:
        """Until following the store fails for good: raises what made it fail."""
        assert self._task is not None
        await asyncio.wait({self._task})
        self._task.result()

    def listen(self, listener: Listener) -> None:
        """Be told of each change after it is applied."""
        self._listeners.append(listener)

    async def _follow(self, watch: Watch) -> None:
        try:
            async for change in watch:
                self.apply(change)
                self._reached(change.revision)
        finally:
            await watch.aclose()

    def apply(self, change: Change, record: Model | None = None) -> None:
        """Take over a change, from the watch or of our own making; older than what is known = ignored."""
        kind, *rest = change.key.split(".")
        parts = tuple(rest)
        records = self._kinds.get(kind)
        if records is None or len(parts) != _PARTS.get(kind, 1):
            return
        if kind == "claim" and not (parts[2].isdecimal() and parts[3].isdecimal()):
            log.warning("the key %s is no claim and is set aside", change.key)
            return
        known = records.get(parts)
        if known is not None and record is not None and known.revision == change.revision:
            known.decoded(record)  # the watch was faster than our own write's answer
            return
        if (known and known.revision >= change.revision) or self._deleted.get((kind, parts), 0) >= change.revision:
            return
        if change.value is None:
            records.pop(parts, None)
            self._deleted[kind, parts] = change.revision
            if len(self._deleted) > 10_000:
                self._deleted.pop(next(iter(self._deleted)))
        else:
            records[parts] = Versioned(change.revision, _MODELS[kind], change.value, record)
        if kind == "claim":
            self._index_claim(parts, change.value is not None)
        elif kind == "run":
            self._index_run(parts[0], known.raw if known is not None else None, change.value)
        elif kind == "driver":
            self._drivers = None
        for listener in self._listeners:
            listener(kind, parts)

    def touch(self, kind: str, *parts: str) -> None:
        """Tell the listeners as if this key had changed: something they judge it by has."""
        for listener in self._listeners:
            listener(kind, parts)

    def _index_claim(self, parts: tuple[str, ...], present: bool) -> None:
        claims = self._claims_of_run.setdefault(parts[0], set())
        if present:
            claims.add(parts)
        else:
            claims.discard(parts)
            if not claims:
                del self._claims_of_run[parts[0]]

    def _index_run(self, run_id: str, before: bytes | None, after: bytes | None) -> None:
        if before is not None and after is not None and still_under_way(before, after):
            return
        old, new = (Facts.read(raw) if raw is not None else None for raw in (before, after))
        self.runs.change(run_id, old, new)
        if new is None:
            return
        if new.status not in _KNOWN:
            # Of a newer version, most likely: alive, but nothing this one can look at.
            self._decodes("run", (run_id,))
        elif new.ended:
            self._ended.append(self._kinds["run"][run_id,])
            if len(self._ended) > _ENDED_DECODED:
                self._ended.popleft().forget()

    # -- reading -------------------------------------------------------------------------------------------------

    def _decodes(self, kind: str, parts: tuple[str, ...]) -> bool:
        """Whether the record is there and can be decoded."""
        found = self._kinds[kind].get(parts)
        if found is None or found.set_aside:
            return False
        try:
            return found.record is not None
        except ValidationError as error:
            found.set_aside = True
            key = ".".join((kind, *parts))
            log.warning("%s (revision %d) cannot be read and is set aside: %s", key, found.revision, error)
            return False

    def _get(self, kind: str, parts: tuple[str, ...], model: type[M]) -> Versioned[M] | None:
        return cast("Versioned[M]", self._kinds[kind][parts]) if self._decodes(kind, parts) else None

    def _all(self, kind: str, model: type[M]) -> Iterator[tuple[tuple[str, ...], Versioned[M]]]:
        records = cast("dict[tuple[str, ...], Versioned[M]]", self._kinds[kind])
        for parts, versioned in list(records.items()):
            if self._decodes(kind, parts):
                yield parts, versioned

    def resource(self, type_: str, name: str) -> Versioned[ResourceRecord] | None:
        """One resource."""
        return self._get("resource", (type_, name), ResourceRecord)

    def run(self, run_id: str) -> Versioned[RunRecord] | None:
        """One run. It is not decoded yet, so only one whose status nobody knows is set aside."""
        found = cast("Versioned[RunRecord] | None", self._kinds["run"].get((run_id,)))
        return found if found is not None and not found.set_aside else None

    def claim(self, run_id: str, step: str, attempt: int, takeover: int) -> Versioned[Claim] | None:
        """One claim."""
        return self._get("claim", (run_id, step, str(attempt), str(takeover)), Claim)

    def instance(self, instance_id: str) -> Versioned[Instance] | None:
        """One process's lease."""
        return self._get("instance", (instance_id,), Instance)

    def driver(self, name: str) -> DriverRecord | None:
        """A driver's record."""
        found = self._get("driver", (name,), DriverRecord)
        return found.record if found else None

    def definition(self, type_: str) -> Versioned[ResourceDefinition] | None:
        """A resource definition."""
        return self._get("definition", (type_,), ResourceDefinition)

    def resources(self, type_: str | None = None) -> Iterator[Versioned[ResourceRecord]]:
        """All resources (of a type), by type and name."""
        records = self._kinds["resource"]
        for parts in sorted(records):
            if (type_ is None or parts[0] == type_) and self._decodes("resource", parts):
                yield cast("Versioned[ResourceRecord]", records[parts])

    @property
    def live_runs(self) -> AbstractSet[str]:
        """Ids of the runs that are not terminal."""
        return self.runs.live

    def run_ids(self) -> list[str]:
        """Ids of all runs, newest first."""
        return self.runs.before((ALL,), "", self.runs.count((ALL,)))

    def claims_of(self, run_id: str) -> Iterator[tuple[tuple[str, int, int], Claim]]:
        """The claims of a run: ((step, attempt, takeover), claim)."""
        for parts in list(self._claims_of_run.get(run_id, ())):
            found = self._get("claim", parts, Claim)
            if found is not None:
                yield (parts[1], int(parts[2]), int(parts[3])), found.record

    def instances(self) -> Iterator[Versioned[Instance]]:
        """All leases known."""
        for _, versioned in self._all("instance", Instance):
            yield versioned

    def drivers(self) -> Mapping[str, DriverRecord]:
        """All driver records by name; the same object until one changes."""
        if self._drivers is None:
            self._drivers = {parts[0]: versioned.record for parts, versioned in self._all("driver", DriverRecord)}
        return self._drivers

    def definitions(self) -> list[ResourceDefinition]:
        """All definitions by name."""
        found = {parts: versioned.record for parts, versioned in self._all("definition", ResourceDefinition)}
        return [found[parts] for parts in sorted(found)]

    # -- read your writes ----------------------------------------------------------------------------------------

    async def wait_for(self, revision: int | None, *, timeout: float = 2.0) -> None:
        """Until the view has applied `revision` (None = the highest this process committed).

        Raises BusUnavailable after `timeout` seconds: an older list would be a wrong answer.
        """
        wanted = self.committed if revision is None else revision
        if self.revision >= wanted:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, future))
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            raise BusUnavailable("the list is not current yet; try again in a moment") from None
        finally:
            self._waiting = [pair for pair in self._waiting if pair[1] is not future]

    def _reached(self, revision: int) -> None:
        self.revision = max(self.revision, revision)
        for wanted, future in self._waiting:
            if wanted <= self.revision and not future.done():
                future.set_result(None)
