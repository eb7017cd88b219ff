"""Puts our streams back when somebody changes or removes them, such as a Go Conveyor engine at its start.

The server tells of a change by an advisory, which is not stored: what happened while we were away is found by a look
after each reconnect, and every half a minute. Every process of ours watches; the one that looks first mends, and the
others find nothing.

A stream of dispatches, logs or dead letters that was removed is made again: what nobody has begun, the sweep issues
again. Without the state or the results nobody can tell what was done: those are left missing, and the processes end
(`store.integrity.watch_epoch`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from conveyor_runtime.bus.connection import Bus
from conveyor_runtime.bus.errors import ApiError
from conveyor_runtime.bus.restoring import refuse_unrestored
from conveyor_runtime.bus.streams import RESULTS, STATE, STREAMS, put_back, stream_info
from conveyor_runtime.errors import BusError, ConfigError

__all__ = ["guard_streams"]

log = logging.getLogger(__name__)

#: Seconds, at most, before a look: not all processes at once.
_SPREAD = 1.0

#: Seconds until what could not be put back is tried again.
_AGAIN = 2.0

#: Seconds between two looks that nothing asked for.
_PERIOD = 30.0

#: Sequences that no stream hands out between two looks at it.
_FAR = 1 << 30


async def guard_streams(bus: Bus, missing: set[str] | None = None) -> None:
    """Watch for ever. In `missing` are those that are not there, as of the latest look."""
    guard = _Guard(bus, set() if missing is None else missing)
    told = False
    unsubscribe = await bus.subscribe_core(
        "$JS.EVENT.ADVISORY.STREAM.*.*", lambda message: guard.look_at(message.subject.rpartition(".")[2])
    )
    stop_listening = bus.add_connection_listener(lambda up: guard.look_at(*STREAMS) if up else None)
    try:
        while True:
            await asyncio.sleep(random.uniform(0, _SPREAD))  # noqa: S311 - spreads load, no secret
            trouble = await guard.look()
            if trouble is not None:
                log.log(logging.DEBUG if told else logging.WARNING, "bus: a stream cannot be put back: %s", trouble)
                await asyncio.sleep(_AGAIN)
            else:
                await guard.until_asked()
            told = trouble is not None
    finally:
        stop_listening()
        await unsubscribe()


class _Guard:
    def __init__(self, bus: Bus, missing: set[str]) -> None:
        self._bus = bus
        self._missing = missing
        self._changed = set(STREAMS)
        self._wake = asyncio.Event()
        self._seen: dict[str, Mapping[str, Any]] = {}

    def look_at(self, *names: str) -> None:
        """Something happened to these."""
        if ours := STREAMS.keys() & names:
            self._changed |= ours
            self._wake.set()

    async def until_asked(self) -> None:
        """Until there is something to look at."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PERIOD):
                await self._wake.wait()
                return
        self._changed |= STREAMS.keys()

    async def look(self) -> Exception | None:
        """Put back what is not as it should be; what came of one that cannot be mended now, and is looked at again."""
        self._wake.clear()
        trouble: Exception | None = None
        for name in sorted(self._changed):
            self._changed.discard(name)  # before the look: a change that comes during it has the name noted again
            try:
                await self._mend(name)
            except (BusError, ConfigError) as error:
                self._changed.add(name)
                trouble = error
        return trouble

    async def _mend(self, name: str) -> None:
        info = await stream_info(self._bus, name)
        if info is None:
            self._missing.add(name)
            await self._make_again(name)
            log.error("bus: somebody removed stream %s, and with it all that was in it; made again, empty", name)
        elif fields := await put_back(self._bus, name, info["config"]):
            log.warning(
                "bus: somebody changed %s of stream %s, a Go Conveyor engine on this bus perhaps; put back",
                ", ".join(fields),
                name,
            )
        self._missing.discard(name)
        if info is not None:
            self._seen[name] = info

    async def _make_again(self, name: str) -> None:
        """Make a stream anew, with sequences far behind those it had, so that none is handed out twice."""
        if name in (STATE, RESULTS):
            raise BusError(f"stream {name} was removed, and what was acknowledged with it")
        await refuse_unrestored(self._bus)
        seen = self._seen.get(name, {"config": {"name": name}, "state": {"last_seq": 0}})
        config = {**seen["config"], **STREAMS[name], "first_seq": int(seen["state"]["last_seq"]) + _FAR}
        try:
            await self._bus.api(f"STREAM.CREATE.{name}", config, timeout=10)
        except ApiError:
            if await stream_info(self._bus, name) is None:  # else somebody else made it meanwhile
                raise
