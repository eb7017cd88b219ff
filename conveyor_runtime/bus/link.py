"""The connection to the bus: how it is made and kept, and who is told when it breaks."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Self

import nats.errors
from nats.aio.client import Client
from nats.aio.client import Server as ServerInfo

from conveyor_runtime.bus import wire
from conveyor_runtime.bus.address import parse_url
from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.kit.backoff import Backoff

__all__ = ["Link"]

log = logging.getLogger(__name__)


WATCH = 2.0
"""Seconds between two looks whether a lost connection is still being mended."""


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


class _Client(Client):
    """The client with our reading of headers: its own looks at every letter of every name (8 us a result, ours 2)."""

    _parse_header_lines = staticmethod(wire.parse_header_lines)


class Link:
    """The connection itself: it comes back by itself."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._nc = _Client()
        self._backoff = Backoff(0.1, 2.0)  # short at first: a restarted server is back in a moment
        self._listeners: list[Callable[[bool], None]] = []
        self._up = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        self._lost_at: float | None = None
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
        await self._open()
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
        if self._lost_at is not None:
            log.info("bus: connected again after %.1f s", self.connected_since - self._lost_at)
            self._lost_at = None
        self._up.set()
        self._tell(True)

    async def _on_disconnected(self) -> None:
        if self.connected_since is None:
            return
        self.connected_since = None
        self._lost_at = time.monotonic()
        self._up.clear()
        self._lost()
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
        """Close for good."""
        await _cancellable(self._nc.close())

    # -- what goes over it ------------------------------------------------------------------------------------

    async def _open(self) -> None:
        """The first connection is there."""

    def _lost(self) -> None:
        """The connection broke."""
