"""Standing pull requests on one inbox: the part that workers' pullers and readers' tails share."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from conveyor_runtime.bus import wire
from conveyor_runtime.bus.connection import Bus

__all__ = ["Pull"]

EXPIRES = 30.0
"""Seconds a pull request stands before the server gives it back."""


class Pull:
    """Pull requests of one consumer that are answered on one inbox.

    `outstanding` counts the messages that are still owed. To withdraw them, close it: the server passes over
    requests whose inbox nobody listens to. A pull that was broken off is never mended, a new one is opened.
    """

    def __init__(
        self,
        bus: Bus,
        stream: str,
        consumer: str,
        *,
        heartbeat: float,
        take: Callable[[Pull, Msg], None],
        changed: Callable[[], None],
        max_bytes: int = 0,
    ) -> None:
        self.outstanding = 0
        self.gone = False
        """The server says that there is no such consumer (any more)."""
        self.refused = ""
        """Why the server ended a request early, when asking again at once would not help."""
        self.heard = time.monotonic()
        """When the server last said anything."""
        self.idle = False
        """The last thing it said was that nothing is there."""
        self._bus = bus
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._heartbeat = heartbeat
        self._options = f'"expires":{round(EXPIRES * 1e9)},"idle_heartbeat":{round(heartbeat * 1e9)}'
        if max_bytes:
            self._options += f',"max_bytes":{max_bytes}'
        self._take = take
        self._changed = changed
        self._inbox = bus.new_inbox()
        self._sub: Subscription | None = None
        self._closed = False

    async def open(self) -> None:
        """Begin to listen. Raises BusUnavailable when the connection is closed for good."""
        sub = await self._bus.subscribe_raw(self._inbox, self._on_message)
        if self._closed:
            await self._bus.unsubscribe_raw(sub)
        else:
            self._sub = sub

    def ask(self, count: int) -> None:
        """Ask for `count` messages more. Raises BusUnavailable when not connected."""
        if not self.outstanding:
            self.heard = time.monotonic()  # only who owes us something must keep in touch
        body = f'{{"batch":{count},{self._options}}}'.encode()
        self._bus.send(wire.assemble(self._subject, b"", body, self._inbox))
        self.outstanding += count

    def silent(self) -> bool:
        """Whether the server has missed two heartbeats: then our requests are lost, or the connection is."""
        return self.outstanding > 0 and time.monotonic() - self.heard > 2.5 * self._heartbeat

    def close(self) -> Coroutine[Any, Any, None]:
        """Withdraw what is outstanding, at once; await the rest: what is on its way is still taken."""
        self.outstanding = 0
        self._closed = True
        sub, self._sub = self._sub, None
        return _nothing() if sub is None else self._bus.unsubscribe_raw(sub)

    def _on_message(self, msg: Msg) -> None:
        self.heard = time.monotonic()
        if msg.reply:  # status messages have none, whatever headers a stored message brings along
            self.idle = False
            if self.outstanding:
                self.outstanding -= 1
            self._take(self, msg)
            return
        headers = msg.headers or {}
        status, text = headers.get("Status", ""), headers.get("Description", "").lower()
        self.idle = status in ("100", "404", "408")
        if status != "100":
            self._ended(status, text, headers.get("Nats-Pending-Messages"))
        self._changed()

    def _ended(self, status: str, text: str, pending: str | None) -> None:
        """A request is over. `pending` is what it still owed; without that, suppose that all are over."""
        if pending is None:
            self.outstanding = 0
        else:
            self.outstanding = max(self.outstanding - int(pending), 0)
        if status == "503" or "consumer deleted" in text:
            self.outstanding = 0
            self.gone = True
        elif status not in ("404", "408") and "maxbytes" not in text and "batch completed" not in text:
            self.refused = f"{status} {text}"


async def _nothing() -> None:
    """There was no subscription to end."""
