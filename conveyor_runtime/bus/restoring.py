"""A restore to a bus, as the others on it see it: a stream stands there until everything is restored.

A restore makes one stream after the other, and whoever meets some of them would take them for all there is, or make
those that are missing. So nothing of ours is served while that stream is there. The streams that a restore makes bear
its id: what is cleared away after one that failed or was killed is what it made, and nothing of others.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from conveyor_runtime.bus import wire
from conveyor_runtime.bus.connection import Bus
from conveyor_runtime.bus.errors import ApiError
from conveyor_runtime.bus.streams import STREAMS, stream_info
from conveyor_runtime.errors import BusError, BusUnavailable, ConfigError

__all__ = ["Restoring", "refuse_unrestored", "restoring"]

log = logging.getLogger(__name__)

_MARKER = "cv-restoring"

#: Where a stream bears the id of the restore that made it.
_ID = "conveyor-restore"


async def refuse_unrestored(bus: Bus) -> None:
    """Raise ConfigError if a restore to this bus has not ended."""
    if (info := await stream_info(bus, _MARKER)) is not None:
        raise ConfigError(
            f"a restore to this bus has not ended ({info['config'].get('description', '?')}). Wait for it; if it was"
            " broken off, do it again (`conveyor restore FILE --nats-url URL`)"
        )


class Restoring:
    """A restore that is under way on this connection. Whoever has lost it counts as killed, and must not go on."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._since = bus.connected_since
        self.id = secrets.token_hex(8)

    def marked(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration of a stream that this restore makes."""
        return {**config, "metadata": {**config.get("metadata", {}), _ID: self.id}}

    def check(self) -> None:
        """Raise BusUnavailable if the connection broke: another restore may have cleared away what this one made."""
        if self._bus.connected_since != self._since:
            raise BusUnavailable("the connection to the bus broke during the restore")

    async def begin(self) -> None:
        """Have others see it, and refuse. Raises ConfigError."""
        if (other := await _maker(self._bus, _MARKER)) is not None:
            await _end_broken_off(self._bus, other)
        about = f"by process {os.getpid()} on {socket.gethostname()}"
        config = self.marked({"name": _MARKER, "subjects": ["cv.restoring"], "description": about})
        try:
            await self._bus.api(f"STREAM.CREATE.{_MARKER}", config, timeout=10)
        except ApiError:
            await refuse_unrestored(self._bus)  # another has begun meanwhile
            raise

    async def end(self) -> None:
        """Everything is restored."""
        self.check()
        await self._bus.api(f"STREAM.DELETE.{_MARKER}", timeout=30)


@asynccontextmanager
async def restoring(bus: Bus) -> AsyncIterator[Restoring]:
    """Have a bus without streams of ours to oneself until all is restored. What was made is removed if that fails.

    Raises ConfigError if there are streams of ours, or another restore is under way; BusError.
    """
    ours = Restoring(bus)
    # Until after the marker is gone: a marker without an answer is one that was left behind.
    stop_answering = await bus.subscribe_core(
        _alive(ours.id), lambda msg: bus.send(wire.assemble(msg.reply, b"", b"here"))
    )
    try:
        await ours.begin()
        try:
            for name in STREAMS:
                if await stream_info(bus, name) is not None:
                    raise ConfigError(f"there is a stream {name} on this bus already; restore to a fresh one")
            yield ours
            await ours.end()
        except BaseException:
            with suppress(BusError):
                await _clear(bus, ours.id)
            raise
    finally:
        await stop_answering()


async def _maker(bus: Bus, stream: str) -> str | None:
    """The id of the restore that made a stream; empty if none did, None if there is no such stream."""
    info = await stream_info(bus, stream)
    return None if info is None else str((info["config"].get("metadata") or {}).get(_ID, ""))


async def _end_broken_off(bus: Bus, other: str) -> None:
    """Clear away what a restore has left that is not there any more. Raises ConfigError if it is."""
    try:
        answer = await bus.ask(lambda reply: bus.frame(wire.Message(_alive(other), b""), reply), _alive(other), 5.0)
        gone = wire.status_of(answer) == "503"
    except BusUnavailable:
        gone = False  # it is connected, but stands still
    if not gone:
        await refuse_unrestored(bus)
    elif await _maker(bus, _MARKER) == other:  # else it has just ended well
        log.warning("what a restore has left that was broken off is removed")
        await _clear(bus, other)


async def _clear(bus: Bus, restore_id: str) -> None:
    """Remove what a restore has made, the marker last."""
    for name in (*STREAMS, _MARKER):
        if await _maker(bus, name) == restore_id:
            await bus.api(f"STREAM.DELETE.{name}", timeout=30)


def _alive(restore_id: str) -> str:
    return f"cv.restorer.{restore_id}"
