"""Whether the store is still what was acknowledged: what a damaged disk takes away, the server does not tell.

A flipped bit makes it leave out one message, or after a crash all that follow in the file, without a warning, and hands
their sequences out anew. So `serve` keeps a high-water mark outside the store, in its data directory, and at its start
compares: the epoch, the last sequence of every stream, and that each key of the state can still be read.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import orjson

from conveyor_runtime.bus import Bus, Tail
from conveyor_runtime.bus.messages import next_by_subject
from conveyor_runtime.bus.streams import RESULTS, STATE, STREAMS, stream_info
from conveyor_runtime.bus.subjects import KV
from conveyor_runtime.bus.wire import parse_time
from conveyor_runtime.errors import InfrastructureError, StoreError
from conveyor_runtime.store.kv import MARKER_TTL
from conveyor_runtime.store.state import State

__all__ = ["EpochChangedError", "HighWater", "find_damage", "unreadable_keys", "watch_epoch"]

log = logging.getLogger(__name__)

#: Seconds between two writings of the mark; what is acknowledged after the last one is not watched over.
PERIOD = 5.0

#: Deleted messages above which a stream is not asked what it lost: the answer would name each of them.
_MOST_DELETED = 200_000

#: Seconds between two looks whether it is still the same store, and how often in a row it may be missing: a server that
#: is starting, or a cluster that elects, is no reason to end.
_LOOK = 5.0
_MOST_MISSING = 2

#: Seconds without a key after which the state counts as not readable to its end.
_STALLED = 30.0


class EpochChangedError(StoreError):
    """The store was restored from a backup: what this process knows of it may never have happened."""


@dataclass
class HighWater:
    """The mark of one bus in the file `path`, which holds those of several. `bus_name` tells them apart."""

    path: Path
    bus_name: str
    epoch: str = ""
    sequences: Mapping[str, int] = field(default_factory=dict)
    damage: Sequence[str] = ()
    """What was found missing and is not accepted yet. The server tells of some of it only once."""
    accepted: Sequence[str] = ()
    """Keys that cannot be read, which was accepted. The server can neither purge nor overwrite them."""

    @classmethod
    def read(cls, path: Path, bus_name: str) -> HighWater:
        """What was written last; an empty mark if there is none."""
        try:
            found = orjson.loads(path.read_bytes())[bus_name]
            sequences = {name: int(it) for name, it in found["sequences"].items()}
            return cls(path, bus_name, str(found["epoch"]), sequences, found["damage"], found["accepted"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return cls(path, bus_name)

    def write(self) -> None:
        """Keep it, whole or not at all. Raises OSError."""
        try:
            marks = orjson.loads(self.path.read_bytes())
        except (OSError, ValueError):
            marks = {}
        mark = {"epoch": self.epoch, "sequences": dict(self.sequences)}
        marks[self.bus_name] = {**mark, "damage": list(self.damage), "accepted": list(self.accepted)}
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with fresh.open("wb") as file:
            file.write(orjson.dumps(marks))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)

    async def take(self, bus: Bus, state: State) -> None:
        """Read the present mark from the bus and keep it. Raises OSError, BusError."""
        await self._take(await _sequences(bus), state)

    async def _take(self, found: Mapping[str, int], state: State) -> None:
        sequences = {**self.sequences, **found}
        meta = await state.meta()
        if meta is None or (meta.epoch, sequences, ()) == (self.epoch, self.sequences, tuple(self.damage)):
            return
        self.epoch, self.sequences, self.damage = meta.epoch, sequences, ()
        await asyncio.to_thread(self.write)

    async def keep(self, bus: Bus, state: State) -> None:
        """Keep it current for ever, as well as the disk and the bus allow."""
        while not self.damage:
            with suppress(OSError, InfrastructureError):
                await self.move_on(bus, state)
            await asyncio.sleep(PERIOD)

    async def move_on(self, bus: Bus, state: State) -> None:
        """Keep the present mark; or say it if the server lost something, at a start of its own, and keep that for our
        next one. Raises OSError, BusError."""
        sequences = await _sequences(bus)
        if shorter := _shorter(sequences, self):
            log.error("the store has lost what was acknowledged: %s; restore a backup", "; ".join(shorter))
            await self.note(shorter)
        else:
            await self._take(sequences, state)  # these, and none that nobody has compared

    async def note(self, damage: Sequence[str]) -> None:
        """Keep what was found, until it is accepted."""
        self.damage = damage
        with suppress(OSError):
            await asyncio.to_thread(self.write)


async def find_damage(bus: Bus, state: State, mark: HighWater) -> list[str]:
    """What of the store is not what was acknowledged, in words; nothing if all is well."""
    found = list(mark.damage)
    meta = await state.meta()
    if mark.epoch and (meta is None or meta.epoch != mark.epoch):
        found.append("the epoch of the store is gone" if meta is None else "it is not the store that was served last")
    found += _shorter(await _sequences(bus), mark)
    for name in STREAMS:
        if lost := await _lost(bus, name):
            found.append(f"{lost} bytes of stream {name} are no messages")
    if await _end_is_missing(bus):
        found.append("the latest of the state is missing")
    if missing := await unreadable_keys(bus) - {*mark.accepted}:
        found.append(f"{len(missing)} keys of the state cannot be read ({', '.join(sorted(missing)[:5])})")
    return list(dict.fromkeys(found))


async def unreadable_keys(bus: Bus) -> set[str]:
    """Keys that the server counts but does not deliver."""
    info = await stream_info(bus, STATE)
    counted = int(info["state"].get("num_subjects", 0)) if info is not None else 0
    seen = await _readable(bus) if counted else set()
    if len(seen) >= counted:
        return set()
    # By name, and after another look: others may have removed some meanwhile.
    return {subject.removeprefix(KV) for subject in await _subjects(bus) - seen - await _readable(bus)}


def _shorter(sequences: Mapping[str, int], mark: HighWater) -> list[str]:
    return [
        f"stream {name} ends at sequence {last}, and was acknowledged up to {mark.sequences[name]}"
        for name, last in sequences.items()
        if last < mark.sequences.get(name, 0)
    ]


async def _sequences(bus: Bus) -> dict[str, int]:
    """The last of each stream. One that is missing is not among them: `bus.guard` sees to it, and if it is made anew
    from its beginning, it ends too early then."""
    infos = {name: await stream_info(bus, name) for name in STREAMS}
    return {name: int(info["state"]["last_seq"]) for name, info in infos.items() if info is not None}


async def _lost(bus: Bus, name: str) -> int:
    """Bytes the server itself found missing at its start; it says so only beside the list of all that was deleted."""
    info = await stream_info(bus, name)
    if info is None or info["state"].get("num_deleted", 0) > _MOST_DELETED:
        return 0
    state = (await bus.api(f"STREAM.INFO.{name}", {"deleted_details": True}, timeout=30))["state"]
    return int((state.get("lost") or {}).get("bytes", 0))


async def _end_is_missing(bus: Bus) -> bool:
    """Whether the message is gone that the server counts as the last: a file cut short, whose length it knew.

    Nobody removes the newest key, but the server does with a delete's marker, a day later.
    """
    info = await stream_info(bus, STATE)
    if info is None or not (last := info["state"]["last_seq"]):
        return False
    written = parse_time(info["state"]["last_ts"])
    recent = (datetime.now(UTC) - written).total_seconds() < MARKER_TTL - 3600
    return recent and await next_by_subject(bus, STATE, f"{KV}>", last) is None


async def _subjects(bus: Bus) -> set[str]:
    """The subjects of all keys the server counts."""
    found: set[str] = set()
    while True:
        page = await bus.api(f"STREAM.INFO.{STATE}", {"subjects_filter": f"{KV}>", "offset": len(found)})
        subjects = page["state"].get("subjects") or {}
        found |= subjects.keys()
        if not subjects or len(found) >= page.get("total", 0):
            return found


async def _readable(bus: Bus) -> set[str]:
    """The subjects of all keys the server delivers."""
    tail = Tail(bus, STATE, f"{KV}>", last_per_subject=True)
    seen: set[str] = set()
    caught_up = asyncio.create_task(tail.caught_up.wait())
    try:
        while True:
            upcoming = asyncio.ensure_future(anext(tail))
            done, _ = await asyncio.wait({upcoming, caught_up}, timeout=_STALLED, return_when=asyncio.FIRST_COMPLETED)
            if upcoming not in done:
                upcoming.cancel()
                return seen
            seen.add(upcoming.result().subject)
    finally:
        caught_up.cancel()
        await tail.aclose()


async def watch_epoch(bus: Bus, state: State) -> None:
    """Look every few seconds, and after each reconnect, whether it is still the same store. Raises EpochChangedError.

    A stream that was removed and made anew is another, too, even if all in it is as before.
    """
    back = asyncio.Event()
    stop_listening = bus.add_connection_listener(lambda up: back.set() if up else None)
    try:
        known, missing = None, 0
        while True:
            back.clear()
            try:
                found = await _identity(bus, state)
            except InfrastructureError:
                await asyncio.sleep(0.5)
                continue
            missing = missing + 1 if found is None else 0
            if known is not None and (missing >= _MOST_MISSING or found not in (None, known)):
                raise EpochChangedError(
                    "the store was restored from a backup, removed or made anew: this process ends, as what it works on"
                    " may never have happened there"
                )
            known = known or found
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await back.wait()
    finally:
        stop_listening()


async def _identity(bus: Bus, state: State) -> tuple[str, ...] | None:
    """What tells this store from any other: its epoch, and when the streams were made that hold what was acknowledged
    and cannot be had again. None if something of it is missing."""
    infos = [await stream_info(bus, name) for name in (STATE, RESULTS)]
    if None in infos or (meta := await state.meta()) is None:
        return None
    return (meta.epoch, *(info["created"] for info in infos if info is not None))
