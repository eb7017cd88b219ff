"""What goes over the connection: frames out, messages in, questions with their answers.

The client keeps the connection, the subscriptions and the protocol. What is written goes to its transport
directly, and only while connected: the client's own buffer would send control writes after a reconnect, long
after their author was told that they failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, cast

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from conveyor_runtime.bus import wire
from conveyor_runtime.bus.errors import PayloadTooLarge
from conveyor_runtime.bus.link import Link
from conveyor_runtime.errors import BusUnavailable

__all__ = ["Channel"]

log = logging.getLogger(__name__)


class _Sink:
    """Stands where the client expects the future of a one-shot request, and hands every message on at once.

    A subscription with a callback would cost a queue and a task switch per message, and drop what exceeds
    its limits; here the reading loop calls us.
    """

    def __init__(self, take: Callable[[Msg], None]) -> None:
        self._take = take

    def cancelled(self) -> bool:
        return False

    def set_result(self, msg: Msg) -> None:
        try:
            self._take(msg)
        except Exception:
            # An exception here would end the reading loop of the whole connection.
            log.exception("bus: a message handler failed", extra={"subject": msg.subject})


class Channel(Link):
    """A connection that carries frames and hands out what arrives."""

    def __init__(self) -> None:
        super().__init__()
        self._replies: dict[str, Callable[[Msg], None]] = {}
        self._asking: set[asyncio.Future[Msg]] = set()
        self._token = 0
        self._prefix = ""
        self._out: list[bytes] = []

    async def _open(self) -> None:
        self._prefix = self._nc.new_inbox() + "."
        await self.subscribe_raw(self._prefix + "*", self._on_reply)

    def _lost(self) -> None:
        self._out.clear()
        for future in self._asking:
            if not future.done():
                future.set_exception(BusUnavailable("the connection to the bus broke; the outcome is unknown"))

    async def close(self) -> None:
        """Close for good. What was written before is sent first."""
        self._write_out()
        await super().close()

    def send(self, frame: bytes) -> None:
        """Write a ready frame; frames of one turn of the loop leave together, in order.

        Raises BusUnavailable when not connected. Nothing is kept for later: a frame leaves on this connection
        or never.
        """
        if not self.connected:
            raise BusUnavailable("not connected to the bus")
        if not self._out:
            self._loop.call_soon(self._write_out)
        self._out.append(frame)

    def _write_out(self) -> None:
        if self._out and self.connected:
            transport = self._nc._transport
            assert transport is not None
            transport.write(b"".join(self._out))
        self._out.clear()

    def unsent(self) -> int:
        """Bytes that the socket has not taken yet."""
        writer = getattr(self._nc._transport, "_io_writer", None)
        return 0 if writer is None else int(writer.transport.get_write_buffer_size())

    def new_inbox(self) -> str:
        """A fresh subject nobody else listens to."""
        return str(self._nc.new_inbox())

    def check_size(self, subject: str, size: int) -> None:
        """Raise PayloadTooLarge when headers and data together exceed what the server takes."""
        # A frame too big would make the server close the connection.
        if size > self._nc.max_payload:
            raise PayloadTooLarge(
                f"{subject}: {size} bytes exceed the {self._nc.max_payload} the server takes (max_payload)"
            )

    def frame(self, message: wire.Message, reply: str = "") -> bytes:
        """The checked frame that publishes `message`."""
        lines = wire.header_lines(message)
        self.check_size(message.subject, len(lines) + len(message.data) + 12)
        return wire.assemble(message.subject, lines, message.data, reply)

    def on_reply(self, handler: Callable[[Msg], None]) -> str:
        """A fresh reply subject; the first message on it goes to `handler`, from within the reading loop."""
        self._token += 1
        token = f"{self._token:x}"
        self._replies[token] = handler
        return self._prefix + token

    def forget(self, reply: str) -> None:
        """No longer wait for an answer on `reply`."""
        self._replies.pop(reply[len(self._prefix) :], None)

    def _on_reply(self, msg: Msg) -> None:
        handler = self._replies.pop(msg.subject[len(self._prefix) :], None)
        if handler is not None:
            handler(msg)

    async def ask(self, send: Callable[[str], bytes], what: str, timeout: float) -> Msg:
        """Send the frame that `send` makes for a reply subject, and wait `timeout` seconds for the answer.

        Raises BusUnavailable when none comes or the connection breaks: the outcome is unknown then.
        """
        future: asyncio.Future[Msg] = self._loop.create_future()
        reply = self.on_reply(lambda msg: None if future.done() else future.set_result(msg))
        self._asking.add(future)
        try:
            self.send(send(reply))
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise BusUnavailable(f"no answer on {what} within {timeout:g} s") from None
        finally:
            self._asking.discard(future)
            self.forget(reply)

    async def barrier(self, timeout: float = 5.0) -> None:
        """Wait until the server has handled what we sent before and we have what it sent us before."""
        # A message to ourselves, not a PING: a PONG whose waiter was cancelled ends the client's reading loop.
        await self.ask(lambda reply: f"PUB {reply} 0\r\n\r\n".encode(), "our own inbox", timeout)

    async def subscribe_raw(self, subject: str, take: Callable[[Msg], None]) -> Subscription:
        """Subscribe with no queue between the reading loop and `take`."""
        try:
            sub = await self._nc.subscribe(subject, future=cast("asyncio.Future[Any]", _Sink(take)))
        except nats.errors.Error as exc:
            raise BusUnavailable(f"cannot subscribe to {subject}: {exc or type(exc).__name__}") from exc
        if self._nc.is_connected:
            # The client's own SUB waits for its flusher; the same line on our path is in order with our frames,
            # and the server ignores a subscription it has already.
            assert self._nc._transport is not None
            self._write_out()
            self._nc._transport.write(b"SUB %s  %d\r\n" % (subject.encode(), sub._id))
        return sub

    def unsubscribe_raw(self, sub: Subscription) -> Coroutine[Any, Any, None]:
        """Tell the server now, ahead of every frame sent later; await the rest.

        It returns once all that was on its way has been taken, so nothing is lost.
        """
        with contextlib.suppress(BusUnavailable):  # the server forgets the subscription with the connection
            self.send(b"UNSUB %d\r\n" % sub._id)
        return self._drop_sub(sub)

    async def _drop_sub(self, sub: Subscription) -> None:
        try:
            await self.barrier()
        except BusUnavailable:
            pass
        finally:
            self._nc._remove_sub(sub._id)
