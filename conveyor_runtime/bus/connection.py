"""The bus as the rest of the house sees it: ask, call the JetStream API, publish, subscribe."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import orjson
from nats.aio.msg import Msg

from conveyor_runtime.bus import wire
from conveyor_runtime.bus.channel import Channel
from conveyor_runtime.bus.errors import ApiError
from conveyor_runtime.errors import BusError, BusUnavailable
from conveyor_runtime.kit.backoff import Backoff
from conveyor_runtime.telemetry import metrics

__all__ = ["Bus"]

DROPPABLE_BUFFER = 4 << 20
"""Bytes waiting in the socket above which `publish_core` drops: live lines must not delay results."""

ATTEMPT = 5.0
"""Seconds to wait for one PubAck before sending again."""


class Bus(Channel):
    """A connection to NATS that comes back by itself. Make it with `await Bus.connect(url, name=...)`."""

    async def request(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout: float = 5.0
    ) -> Msg:
        """Ask and wait `timeout` seconds for one answer. Raises BusUnavailable when there is none."""
        message = wire.Message(subject, data, headers=headers)
        msg = await self.ask(lambda reply: self.frame(message, reply), subject, timeout)
        if wire.status_of(msg) == "503":
            raise BusUnavailable(f"nobody answers on {subject}")
        return msg

    async def api(self, verb: str, body: object | None = None, *, timeout: float = 5.0) -> dict[str, Any]:
        """Call `$JS.API.<verb>`. Raises ApiError when JetStream refuses, BusUnavailable without an answer."""
        data = b"" if body is None else orjson.dumps(body)
        msg = await self.request(f"$JS.API.{verb}", data, timeout=timeout)
        try:
            answer = orjson.loads(msg.data)
        except ValueError as exc:
            raise BusError(f"{verb}: unreadable answer") from exc
        if error := answer.get("error"):
            raise ApiError(verb, error.get("err_code", error.get("code", 0)), error.get("description", ""))
        return cast(dict[str, Any], answer)

    async def publish(
        self,
        stream_subject: str,
        data: bytes,
        *,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        deadline: float = 10.0,
    ) -> wire.Receipt:
        """Store one message and wait for its PubAck, within `deadline` seconds.

        With `msg_id` it is sent again until then, which is harmless; without, an unanswered publish raises
        BusUnavailable. Raises ApiError when the stream refuses.
        """
        message = wire.Message(stream_subject, data, msg_id, headers=headers)
        give_up = time.monotonic() + deadline
        backoff = Backoff(0.1, 1.0)
        while True:
            left = max(give_up - time.monotonic(), 0.0)
            await self.wait_connected(left)
            try:
                msg = await self.ask(lambda reply: self.frame(message, reply), stream_subject, min(left, ATTEMPT))
            except BusUnavailable:
                if msg_id is None or time.monotonic() >= give_up:
                    raise
                continue
            ack = wire.decode_ack(msg)
            if not ack.error:
                return wire.Receipt(ack.seq, ack.duplicate)
            if ack.transient:
                await asyncio.sleep(min(backoff.next(), max(give_up - time.monotonic(), 0.0)))
            # Asked once more too late for an answer, a known refusal would become an unknown outcome.
            if not ack.transient or time.monotonic() >= give_up:
                raise ApiError(stream_subject, ack.error, ack.description)

    def publish_core(self, subject: str, data: bytes) -> None:
        """Send without storing and without asking: dropped, and counted, when it cannot leave at once."""
        try:
            if self.unsent() > DROPPABLE_BUFFER:
                metrics.BUS_DROPPED.inc()
            else:
                self.send(self.frame(wire.Message(subject, data)))
        except BusError:
            metrics.BUS_DROPPED.inc()

    async def subscribe_core(self, subject: str, callback: Callable[[Msg], None]) -> Callable[[], Awaitable[None]]:
        """Call `callback` with every message on `subject` while connected; returns how to unsubscribe.

        The callback runs in the reading loop: it must not block, and what it raises is logged.
        """
        sub = await self.subscribe_raw(subject, callback)
        return lambda: self.unsubscribe_raw(sub)
