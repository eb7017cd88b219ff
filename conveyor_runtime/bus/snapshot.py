"""A stream as bytes, and back: the server's own snapshots, each consistent in itself, made while the stream is used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from nats.aio.msg import Msg

from conveyor_runtime.bus import wire
from conveyor_runtime.bus.connection import Bus
from conveyor_runtime.bus.streams import stream_info
from conveyor_runtime.errors import BusError

__all__ = ["Snapshot", "restore_stream"]

CHUNK = 128 << 10
"""Bytes in one message of a snapshot."""

_SILENCE = 60.0
"""Seconds without a chunk after which the server is taken for gone; it reads all of the stream before the first."""


class Snapshot:
    """One stream's snapshot with its consumers: `await begin()`, then `async for` its bytes.

    `about` is what the restore needs besides them: the stream's config and state.
    """

    def __init__(self, bus: Bus, stream: str) -> None:
        self.about: dict[str, Any] = {}
        self._bus = bus
        self._stream = stream
        self._chunks: asyncio.Queue[Msg] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Take the snapshot. Raises BusError when the server refuses it or breaks it off."""
        inbox = self._bus.new_inbox()
        unsubscribe = await self._bus.subscribe_core(inbox, self._chunks.put_nowait)
        try:
            request = {"deliver_subject": inbox, "no_consumers": False, "chunk_size": CHUNK}
            answer = await self._bus.api(f"STREAM.SNAPSHOT.{self._stream}", request, timeout=_SILENCE)
            self.about = {"config": answer["config"], "state": answer["state"]}
            while chunk := await self._next():
                yield chunk
        finally:
            await unsubscribe()

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(_SILENCE):
                msg = await self._chunks.get()
        except TimeoutError:
            raise BusError(f"the snapshot of stream {self._stream} stopped half-way: the server is silent") from None
        status = wire.status_of(msg)
        if not msg.data and status not in (None, "204"):
            said = (msg.headers or {}).get("Description", status)
            raise BusError(f"the snapshot of stream {self._stream} stopped half-way: {said}")
        if msg.reply:
            self._bus.send(wire.assemble(msg.reply, b"", b""))  # the server sends no more than it is told was taken
        return bytes(msg.data)


async def restore_stream(bus: Bus, stream: str, about: dict[str, Any], chunks: Iterable[bytes]) -> None:
    """Make the stream that a snapshot was taken of. Raises BusError, also when there is one of that name."""
    if await stream_info(bus, stream) is not None:
        raise BusError(f"there is a stream {stream} already")
    answer = await bus.api(f"STREAM.RESTORE.{stream}", about, timeout=30)
    subject = answer["deliver_subject"]
    for chunk in chunks:
        _check(stream, await bus.request(subject, chunk, timeout=_SILENCE))
    # All that is checked and opened before the answer to the end.
    _check(stream, await bus.request(subject, b"", timeout=600), last=True)


def _check(stream: str, msg: Msg, *, last: bool = False) -> None:
    text = bytes(msg.data).decode("utf-8", "replace")
    if "error" in text or (last and "config" not in text):
        raise BusError(f"the server does not take stream {stream} back: {text[:500]}")
