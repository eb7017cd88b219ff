"""The connection to the bus: how it is made and kept, what goes over it, and who is told when it breaks.

The client keeps the connection, the subscriptions and the protocol. What is written goes to its transport
directly, and only while connected: the client's own buffer would send control writes after a reconnect, long
after their author was told that they failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self, cast

import nats.errors
from nats.aio.client import Client
from nats.aio.client import Server as ServerInfo
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from conveyor_runtime.bus import wire
from conveyor_runtime.bus.address import parse_url
from conveyor_runtime.bus.errors import PayloadTooLarge
from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.kit.backoff import Backoff

__all__ = ["Link"]

log = logging.getLogger(__name__)


WATCH = 2.0
"""Seconds between two looks whether a lost connection is still being mended."""


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


async def _cancellable(call: Awaitable[None]) -> None:
    """Await a call of the client, which swallows a cancellation that meets an answer: then raise it afterwards."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        await call
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


class Link:
    """The connection itself: it comes back by itself, carries frames, and hands out what arrives."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._nc = Client()
        self._backoff = Backoff(0.1, 2.0)  # short at first: a restarted server is back in a moment
        self._listeners: list[Callable[[bool], None]] = []
        self._replies: dict[str, Callable[[Msg], None]] = {}
        self._asking: set[asyncio.Future[Msg]] = set()
        self._token = 0
        self._prefix = ""
        self._out: list[bytes] = []
        self._up = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        self.connected_since: float | None = None
        """`time.monotonic()` of the start of the current connection."""
        self.closed = asyncio.Event()
        """Set when the connection is gone for good: a process that lives from it should exit."""

    @classmethod
    async def connect(cls, url: str, *, name: str, patience: float = 10.0) -> Self:
        """Connect to `url` (`nats://user:password@host:port`, several separated by commas, or `tls://`).

        Tries for `patience` seconds, then raises BusUnavailable. Wrong credentials fail at once; a URL that
        cannot work is a ConfigError.
        """
        servers, options = parse_url(url)
        give_up = time.monotonic() + patience
        backoff = Backoff(0.1, 1.0)
        while True:
            bus = cls()
            reason = await bus._try_connect(servers, {**options, "name": name})
            if reason is None:
                return bus
            where = ", ".join(servers)
            if "authorization" in reason.lower():
                raise BusUnavailable(f"{where} refused our user or password; check the credentials in the URL")
            if time.monotonic() >= give_up:
                raise BusUnavailable(
                    f"no bus at {where} within {patience:g} s ({reason}); check that nats-server runs there, "
                    "host and port of the URL, and that no firewall is between"
                )
            await asyncio.sleep(backoff.next())

    async def _try_connect(self, servers: list[str], options: dict[str, Any]) -> str | None:
        """One attempt; None on success, else the reason."""
        reasons: list[str] = []

        async def on_error(exc: Exception) -> None:
            reasons.append(str(exc) or type(exc).__name__)
            log.debug("bus: %s", reasons[-1])
            del reasons[:-1]

        connected = False
        try:
            await _cancellable(
                self._nc.connect(
                    servers,
                    error_cb=on_error,
                    disconnected_cb=self._on_disconnected,
                    reconnected_cb=self._on_connected,
                    closed_cb=self._on_closed,
                    reconnect_to_server_handler=self._choose_server,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=3,
                    ping_interval=5,
                    max_outstanding_pings=2,
                    **options,
                )
            )
            connected = True
        except nats.errors.NoServersError:
            return reasons[-1] if reasons else "no server answers"
        except (OSError, nats.errors.Error, TimeoutError) as exc:
            return str(exc) or type(exc).__name__
        finally:
            if not connected:
                await self._nc.close()  # the client leaves the socket open of a server that refused it
        # Only the first connect is ours to give up; from now on the client must never stop trying.
        self._nc.options["allow_reconnect"] = True
        self._nc.options["max_reconnect_attempts"] = -1
        self._prefix = self._nc.new_inbox() + "."
        await self.subscribe_raw(self._prefix + "*", self._on_reply)
        await self._on_connected()
        return None

    def _choose_server(self, servers: list[ServerInfo], info: dict[str, Any]) -> tuple[ServerInfo | None, float]:
        return random.choice(servers), self._backoff.next()  # noqa: S311

    # -- going and coming -----------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a write would leave now."""
        return self.connected_since is not None and bool(self._nc.is_connected)

    @property
    def max_payload(self) -> int:
        """Bytes the server takes in one message, headers included."""
        return int(self._nc.max_payload)

    @property
    def server_version(self) -> tuple[int, int, int]:
        """The version of the server we are connected to."""
        version = self._nc.connected_server_version
        return version.major, version.minor, version.patch

    def add_connection_listener(self, cb: Callable[[bool], None]) -> Callable[[], None]:
        """Call `cb(False)` when the connection goes and `cb(True)` when it is back; returns how to stop that."""
        self._listeners.append(cb)
        return lambda: self._listeners.remove(cb) if cb in self._listeners else None

    async def wait_connected(self, timeout: float) -> None:
        """Wait until connected, at most `timeout` seconds; BusUnavailable then, or when closed for good."""
        try:
            async with asyncio.timeout(timeout):
                await self._up.wait()
        except TimeoutError:
            raise BusUnavailable(f"not connected to the bus for {timeout:g} s") from None
        if self.closed.is_set():
            raise BusUnavailable("the connection to the bus is closed")

    async def _on_connected(self) -> None:
        self._backoff.reset()
        self.connected_since = time.monotonic()
        self._up.set()
        self._tell(True)

    async def _on_disconnected(self) -> None:
        if self.connected_since is None:
            return
        self.connected_since = None
        self._up.clear()
        self._out.clear()
        for future in self._asking:
            if not future.done():
                future.set_exception(BusUnavailable("the connection to the bus broke; the outcome is unknown"))
        self._tell(False)
        self._loop.call_later(WATCH, self._watch_reconnecting)

    def _watch_reconnecting(self) -> None:
        """Close when the client has stopped trying: what it did not foresee ends its reconnecting silently."""
        if self._up.is_set():
            return
        trying = self._nc._reconnection_task
        if trying is None or trying.done():
            log.error("bus: the client has given up reconnecting; closing the connection")
            self._ending = self._loop.create_task(self._nc.close())
        else:
            self._loop.call_later(WATCH, self._watch_reconnecting)

    async def _on_closed(self) -> None:
        await self._on_disconnected()
        self.closed.set()
        self._up.set()  # whoever waits for a connection must wake to learn that there will be none

    def _tell(self, up: bool) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(up)
            except Exception:
                log.exception("bus: a connection listener failed")

    async def close(self) -> None:
        """Close for good. What was written before is sent first."""
        self._write_out()
        await _cancellable(self._nc.close())

    # -- frames ---------------------------------------------------------------------------------------------

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
