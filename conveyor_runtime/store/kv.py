"""The state bucket in JetStream. Committed in groups by the bus's Committer, watched through a Tail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from conveyor_runtime.bus import Bus, Committer, Message, StoredMsg, Tail, subjects
from conveyor_runtime.bus.messages import last_by_subject
from conveyor_runtime.bus.streams import STATE
from conveyor_runtime.errors import BusUnavailable, RevisionConflict
from conveyor_runtime.store.base import Change, Stored, Watch, Write

_OPERATION = "KV-Operation"

#: A delete leaves a marker, so that watchers learn of it; it must outlive any watcher's reconnect.
MARKER_TTL = 24 * 3600.0


class KvStore:
    """A Store over the KV bucket `cv-state`."""

    def __init__(self, bus: Bus, committer: Committer) -> None:
        self._bus = bus
        self._committer = committer

    async def get(self, key: str) -> Stored | None:
        message = await last_by_subject(self._bus, STATE, subjects.kv(key))
        if message is None or _is_marker(message):
            return None
        return Stored(key, message.data, message.seq)

    async def commit(self, unit: Sequence[Write], *, timeout: float = 10.0) -> list[int]:
        deadline = asyncio.get_running_loop().time() + timeout
        unit = list(unit)
        unknown = False
        while True:
            left = deadline - asyncio.get_running_loop().time()
            try:
                receipts = await self._committer.commit([_message(write) for write in unit], timeout=max(left, 0.05))
                return [receipt.seq for receipt in receipts]
            except BusUnavailable:
                # It may be stored: only the store can tell, and a blind second write would meet its own first one.
                unknown = True
                if deadline - asyncio.get_running_loop().time() < 0.2:
                    raise
                # A committer that is closed says so at once, and would be asked again without end.
                await asyncio.sleep(0.05)
            except RevisionConflict:
                ours = await self._already_ours(unit) if unknown else None
                if ours is not None:
                    return ours
                over_markers = await self._over_markers(unit)
                if over_markers is None:
                    raise
                unit = over_markers

    async def _already_ours(self, unit: Sequence[Write]) -> list[int] | None:
        """The revisions, if every key holds exactly what we wrote."""
        revisions = []
        for write in unit:
            message = await last_by_subject(self._bus, STATE, subjects.kv(write.key))
            value = None if message is None or _is_marker(message) else message.data
            if value != write.value:
                return None
            revisions.append(message.seq if message else 0)
        return revisions

    async def _over_markers(self, unit: Sequence[Write]) -> list[Write] | None:
        """The unit with "must not exist" meant for keys of which only a delete marker is left; None if none is."""
        changed = False
        result = []
        for write in unit:
            if write.expect == 0:
                message = await last_by_subject(self._bus, STATE, subjects.kv(write.key))
                if message is not None and _is_marker(message):
                    write = Write(write.key, write.value, message.seq)
                    changed = True
            result.append(write)
        return result if changed else None

    async def list(self, prefix: str) -> list[Stored]:
        tail = Tail(self._bus, STATE, f"{subjects.KV}{prefix}>", last_per_subject=True)
        found: dict[str, Stored] = {}
        try:
            while (message := await _next_or_end(tail)) is not None:
                key = message.subject.removeprefix(subjects.KV)
                if _is_marker(message):
                    found.pop(key, None)
                else:
                    found[key] = Stored(key, message.data, message.seq)
        finally:
            await tail.aclose()
        return list(found.values())

    async def purge(self, prefix: str) -> None:
        await self._bus.api(f"STREAM.PURGE.{STATE}", {"filter": f"{subjects.KV}{prefix}>"})

    def watch(self) -> Watch:
        return _KvWatch(self._bus)


async def _next_or_end(tail: Tail) -> StoredMsg | None:
    """The next message; None once the tail has caught up."""
    upcoming = asyncio.ensure_future(anext(tail))
    caught_up = asyncio.ensure_future(tail.caught_up.wait())
    try:
        await asyncio.wait({upcoming, caught_up}, return_when=asyncio.FIRST_COMPLETED)
        return upcoming.result() if upcoming.done() else None
    finally:
        for task in (upcoming, caught_up):
            task.cancel()


class _KvWatch:
    def __init__(self, bus: Bus) -> None:
        self._tail = Tail(bus, STATE, subjects.KV + ">", last_per_subject=True)

    async def __aiter__(self) -> AsyncIterator[Change]:
        async for message in self._tail:
            value = None if _is_marker(message) else message.data
            yield Change(message.subject.removeprefix(subjects.KV), value, message.seq)

    async def wait_caught_up(self) -> None:
        await self._tail.caught_up.wait()

    async def aclose(self) -> None:
        await self._tail.aclose()


def _message(write: Write) -> Message:
    if write.value is None:
        return Message(subjects.kv(write.key), b"", expect=write.expect, headers={_OPERATION: "DEL"}, ttl=MARKER_TTL)
    return Message(subjects.kv(write.key), write.value, expect=write.expect)


def _is_marker(message: StoredMsg) -> bool:
    headers = message.headers or {}
    return _OPERATION in headers or "Nats-Marker-Reason" in headers
