"""Tells the service manager how this process is: the protocol of sd_notify(3), as systemd and its kin speak it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Says READY=1, STOPPING=1 and, where a watchdog listens, WATCHDOG=1 as long as the loop turns.

    Takes its variables out of the environment, as they are not meant for children. Says nothing where nobody listens.
    """

    def __init__(self) -> None:
        address, usec, pid = (os.environ.pop(name, "") for name in _VARIABLES)
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        for_us = pid in ("", str(os.getpid()))
        self._period = int(usec) / 2_000_000 if usec.isdecimal() and for_us else 0.0

    def ready(self) -> None:
        """The start is over."""
        self._say("READY=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._say("STOPPING=1")

    @asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        """Feed the watchdog for as long as the block lasts: at half its time, by the loop itself, so that one that
        hangs is found."""
        task = asyncio.create_task(self._feed(), name="watchdog") if self._address and self._period else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _feed(self) -> None:
        while True:
            self._say("WATCHDOG=1")
            await asyncio.sleep(self._period)

    def _say(self, state: str) -> None:
        if not self._address:
            return
        # Whoever listens may have gone: that is no reason for us to fail.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.sendto(state.encode(), self._address)
