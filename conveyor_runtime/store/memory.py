"""The same contract in one process's memory: for tests, ours and users'."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from conveyor_runtime.errors import RevisionConflict
from conveyor_runtime.store.base import Change, Stored, Watch, Write


class MemoryStore:
    """Keeps what a JetStream bucket would keep."""

    def __init__(self) -> None:
        self._values: dict[str, Stored] = {}
        self._revision = 0
        self._watches: list[_MemoryWatch] = []

    async def get(self, key: str) -> Stored | None:
        return self._values.get(key)

    async def commit(self, unit: Sequence[Write], *, timeout: float = 10.0) -> list[int]:
        for write in unit:
            stored = self._values.get(write.key)
            if write.expect is not None and write.expect != (stored.revision if stored else 0):
                raise RevisionConflict(write.key)
        revisions = []
        for write in unit:
            self._revision += 1
            revisions.append(self._revision)
            if write.value is None:
                self._values.pop(write.key, None)
            else:
                self._values[write.key] = Stored(write.key, write.value, self._revision)
            for watch in self._watches:
                watch.put(Change(write.key, write.value, self._revision))
        return revisions

    async def list(self, prefix: str) -> list[Stored]:
        return [stored for key, stored in self._values.items() if key.startswith(prefix)]

    async def purge(self, prefix: str) -> None:
        for key in [key for key in self._values if key.startswith(prefix)]:
            del self._values[key]

    def watch(self) -> Watch:
        present = sorted(self._values.values(), key=lambda stored: stored.revision)
        changes = [Change(stored.key, stored.value, stored.revision) for stored in present]
        watch = _MemoryWatch(changes, self._watches)
        self._watches.append(watch)
        return watch


class _MemoryWatch:
    def __init__(self, present: list[Change], among: list[_MemoryWatch]) -> None:
        self._among = among
        self._queue: asyncio.Queue[Change] = asyncio.Queue()
        self._caught_up = asyncio.Event()
        self._left = len(present)
        for change in present:
            self._queue.put_nowait(change)
        if not present:
            self._caught_up.set()

    def put(self, change: Change) -> None:
        self._queue.put_nowait(change)

    async def __aiter__(self) -> AsyncIterator[Change]:
        while True:
            yield await self._queue.get()
            self._left -= 1
            if self._left == 0:
                self._caught_up.set()

    async def wait_caught_up(self) -> None:
        await self._caught_up.wait()

    async def aclose(self) -> None:
        if self in self._among:
            self._among.remove(self)
