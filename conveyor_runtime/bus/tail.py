"""Read a stream in order, each message once, from any point on and for as long as one likes."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, Self

from nats.aio.msg import Msg
from nats.nuid import NUID

from conveyor_runtime.bus import wire
from conveyor_runtime.bus.connection import Bus
from conveyor_runtime.bus.errors import ApiError
from conveyor_runtime.bus.pull import Pull
from conveyor_runtime.bus.wire import StoredMsg
from conveyor_runtime.errors import BusError, BusUnavailable
from conveyor_runtime.kit.backoff import Backoff

__all__ = ["Tail"]

log = logging.getLogger(__name__)

HEARTBEAT = 1.0
"""Seconds between two signs of life; 2.5 of them without one and the tail starts anew behind what it has."""

WINDOW = 1000
"""Messages fetched ahead of the reader."""

WINDOW_BYTES = 8 << 20

INACTIVE = 60
"""Seconds after which the server removes the consumer of a reader that vanished."""


class Tail:
    """`async for` over the messages of a stream on `filter_subjects`, in stream order, each exactly once.

    Starts at sequence `start_seq`; with `last_per_subject` only the newest message of each subject is given of what
    is stored at the start, and everything after it. Rides on a throw-away consumer that is made anew, behind the last
    message seen, whenever connection, server or consumer are lost. Close it with `aclose`.

    `caught_up` is set once the reader, back for more, has been given all there was at that moment.
    """

    def __init__(
        self,
        bus: Bus,
        stream: str,
        filter_subjects: str | Sequence[str],
        *,
        start_seq: int = 1,
        last_per_subject: bool = False,
    ) -> None:
        self.caught_up = asyncio.Event()
        self._bus = bus
        self._stream = stream
        self._filters = [filter_subjects] if isinstance(filter_subjects, str) else list(filter_subjects)
        self._next_seq = max(start_seq, 1)
        self._snapshot = last_per_subject
        """Still reading the newest of each subject: a restart must skip what is older than that, too."""
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[Msg, wire.Origin]] = deque()
        self._at_end = False
        self._ready = asyncio.Event()
        self._wake = asyncio.Event()
        self._pull: Pull | None = None
        self._consumer = ""
        self._consumer_seq = 0
        self._failure: BusError | None = None
        self._closed = False
        self._stop_listening = bus.add_connection_listener(self._on_connection)
        self._keeper = self._loop.create_task(self._keep())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StoredMsg:
        """The next message. Raises BusError when the stream refuses such a reader."""
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            if self._failure is not None:
                raise self._failure
            if self._at_end:
                self.caught_up.set()
            self._ready.clear()
            await self._ready.wait()
        msg, origin = self._queue.popleft()
        if self._pull is not None and self._pull.outstanding + len(self._queue) <= WINDOW // 2:
            self._wake.set()
        return StoredMsg(origin.stream_seq, msg.subject, msg.data, msg.headers or {}, wire.time_of(origin.time_ns))

    async def aclose(self) -> None:
        """End the reading and remove the consumer; who waits for a message gets the end of the iteration."""
        if self._closed:
            return
        self._closed = True
        self._keeper.cancel()
        self._stop_listening()
        self._queue.clear()
        self._ready.set()
        pull, self._pull = self._pull, None
        if pull is not None:
            await pull.close()
        await self._remove_consumer()

    # -- messages -------------------------------------------------------------------------------------------

    def _take(self, pull: Pull, msg: Msg) -> None:
        if pull is not self._pull:
            return
        origin = wire.origin(msg.reply)
        if origin.consumer_seq != self._consumer_seq + 1:
            # Something between was sent where nobody listened; only a new consumer will send it again.
            pull.gone = True
            self._wake.set()
            return
        self._consumer_seq = origin.consumer_seq
        self._reached(origin.pending == 0)
        if origin.stream_seq >= self._next_seq:
            self._next_seq = origin.stream_seq + 1
            self._queue.append((msg, origin))
        self._ready.set()

    def _status(self) -> None:
        if self._pull is not None and self._pull.idle:
            self._reached(True)  # also when the last pending ones were deleted instead of delivered
            self._ready.set()
        self._wake.set()

    def _reached(self, end: bool) -> None:
        self._at_end = end
        if end:
            self._snapshot = False

    # -- keeping at it --------------------------------------------------------------------------------------

    def _on_connection(self, up: bool) -> None:
        # Deliveries may be lost with the connection, and the consumer with the server.
        if self._pull is not None:
            self._pull.gone = True
        self._wake.set()

    async def _keep(self) -> None:
        backoff = Backoff(0.05, 1.0)
        while self._failure is None:
            if self._bus.closed.is_set():
                self._fail(BusUnavailable("the connection to the bus is closed"))
                return
            if self._bus.connected:
                try:
                    await self._tend()
                    backoff.reset()
                except Exception as exc:
                    if isinstance(exc, ApiError) and not self._consumer:
                        self._fail(exc)  # it never worked, so it is the request that is wrong
                        return
                    if isinstance(exc, BusError):
                        log.warning("bus: cannot read %s: %s", self._stream, exc)
                    else:  # a reader that stands still for ever is worse than one that tries again
                        log.exception("bus: reading %s failed", self._stream)
                    await asyncio.sleep(backoff.next())
                    continue
            try:
                async with asyncio.timeout(HEARTBEAT / 2):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    def _fail(self, exc: BusError) -> None:
        self._failure = exc
        self._ready.set()

    async def _tend(self) -> None:
        pull = self._pull
        if pull is not None and pull.refused:
            pull.gone = True
            reason, pull.refused = pull.refused, ""
            raise BusError(reason)
        if pull is None or pull.gone or pull.silent():
            pull = await self._restart()
        room = WINDOW - len(self._queue) - pull.outstanding
        if room >= WINDOW // 2:
            pull.ask(room)

    async def _restart(self) -> Pull:
        """A new consumer behind the last message seen, and a new pull from it."""
        old, self._pull = self._pull, None
        if old is not None:
            await old.close()
            self._bus.send(wire.assemble(self._deletion(), b"", b""))  # unasked: it may be gone, or go by itself
        name = "cvtail-" + NUID().next().decode()
        answer = await self._bus.api(
            f"CONSUMER.CREATE.{self._stream}.{name}",
            {"stream_name": self._stream, "config": self._config(name), "action": "create"},
        )
        self._consumer, self._consumer_seq = name, 0
        self._reached(answer["num_pending"] == 0)
        self._ready.set()
        self._pull = pull = Pull(
            self._bus,
            self._stream,
            name,
            heartbeat=HEARTBEAT,
            take=self._take,
            changed=self._status,
            max_bytes=WINDOW_BYTES,
        )
        await pull.open()
        return pull

    def _config(self, name: str) -> dict[str, Any]:
        config: dict[str, Any] = {
            "name": name,
            "filter_subjects": self._filters,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": INACTIVE * 10**9,
        }
        if self._snapshot:
            return {**config, "deliver_policy": "last_per_subject"}
        return {**config, "deliver_policy": "by_start_sequence", "opt_start_seq": self._next_seq}

    def _deletion(self) -> str:
        return f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}"

    async def _remove_consumer(self) -> None:
        try:
            await self._bus.request(self._deletion(), timeout=1)
        except BusError as exc:
            log.debug("bus: %s removes itself: %s", self._consumer, exc)
