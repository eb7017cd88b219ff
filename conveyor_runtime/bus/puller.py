"""Work from a durable consumer: never more than there are free slots, and given back at once when we stop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

from nats.aio.msg import Msg

from conveyor_runtime.bus import wire
from conveyor_runtime.bus.connection import Bus
from conveyor_runtime.bus.pull import Pull
from conveyor_runtime.errors import BusError, BusUnavailable, ConveyorError
from conveyor_runtime.kit.backoff import Backoff

__all__ = ["Delivery", "Puller", "Slots"]

log = logging.getLogger(__name__)

HEARTBEAT = 5.0
"""Seconds between two signs of life of a server that has nothing for us."""

GATHER = 0.002
"""Seconds to wait for more free slots while few are free: one request for many instead of one each."""


class Slots:
    """How much one process works on at once, shared by its pullers."""

    def __init__(self, n: int) -> None:
        if n < 1:
            raise ValueError("at least one slot")
        self.total = n
        self.free = n
        self._pullers: list[Puller] = []

    def _take(self) -> bool:
        if not self.free:
            return False
        self.free -= 1
        if not self.free:
            for puller in self._pullers:
                puller._withdraw()
        return True

    def _give(self) -> None:
        self.free += 1
        for puller in self._pullers:
            puller._poke()


class Delivery:
    """One arrival of a message. The first of `ack`, `nak` and `term` counts and frees its slot."""

    def __init__(self, puller: Puller, msg: Msg) -> None:
        self._puller = puller
        self._msg = msg
        self._origin = wire.origin(msg.reply)
        self._settled = False
        self.subject: str = msg.subject
        self.data: bytes = msg.data
        self.headers: Mapping[str, str] = msg.headers or {}
        self.stream_seq = self._origin.stream_seq
        self.num_delivered = self._origin.num_delivered
        """From 1; a server that was killed right after a delivery begins at 1 again."""

    @property
    def age(self) -> float:
        """Seconds since the message was stored, by two clocks."""
        return time.time() - self._origin.time_ns / 1e9

    async def ack(self) -> None:
        """Done: never deliver it again. Sent without asking; one made while disconnected follows later."""
        self._settle(b"+ACK", late=True)

    async def nak(self, delay: float | None = None) -> None:
        """Deliver it again, at once or `delay` seconds from now, to whoever asks."""
        self._settle(b"-NAK" if not delay else b'-NAK {"delay":%d}' % round(delay * 1e9), late=False)

    async def term(self, reason: str) -> None:
        """Never deliver it again, for `reason`."""
        self._settle(b"+TERM " + " ".join(reason.split()).encode(), late=True)

    def in_progress(self) -> None:
        """Still at it: start the acknowledgement time anew. Lost while disconnected."""
        if not self._settled:
            self._puller._answer(self._msg.reply, b"+WPI", late=False)

    def _settle(self, answer: bytes, *, late: bool) -> None:
        if not self._settled:
            self._settled = True
            self._puller._answer(self._msg.reply, answer, late=late)
            self._puller._slots._give()


class Puller:
    """Takes messages from one durable consumer, as many as `slots` are free.

    `on_missing` makes the consumer again when the server says there is none. Starts at once; `next` hands out.
    """

    def __init__(
        self,
        bus: Bus,
        stream: str,
        consumer: str,
        slots: Slots,
        *,
        on_missing: Callable[[], Awaitable[object]],
    ) -> None:
        self._bus = bus
        self._stream = stream
        self._consumer = consumer
        self._slots = slots
        self._on_missing = on_missing
        self._queue: deque[Delivery] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._pull: Pull | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._late: list[tuple[str, bytes]] = []
        self._stopped = False
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._wake.set()
        self._poke_later: asyncio.TimerHandle | None = None
        slots._pullers.append(self)
        self._stop_listening = bus.add_connection_listener(self._on_connection)
        self._keeper = self._loop.create_task(self._keep())

    async def next(self) -> Delivery:
        """The next message; its slot is taken until it is settled. Raises BusError once stopped."""
        while not self._queue:
            if self._stopped:
                raise BusError(f"the puller of {self._consumer} is stopped")
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake_one()  # ours to take, but we leave: the next one may
                raise
        return self._queue.popleft()

    async def stop(self) -> None:
        """Take nothing more and give back at once what nobody has taken from `next`."""
        if self._stopped:
            return
        self._stopped = True
        self._keeper.cancel()
        self._slots._pullers.remove(self)
        # Withdraw first: given back earlier, the messages could come to us again.
        self._retire()
        if self._closing:
            await asyncio.gather(*self._closing)
        while self._queue:
            await self._queue.popleft().nak()
        self._stop_listening()
        if self._poke_later is not None:
            self._poke_later.cancel()
        while self._waiters:
            self._wake_one()

    # -- messages -------------------------------------------------------------------------------------------

    def _take(self, pull: Pull, msg: Msg) -> None:
        if self._stopped or not self._slots._take():
            # Asked for when there was room; the others shall have it now.
            self._answer(msg.reply, b"-NAK", late=False)
            return
        self._queue.append(Delivery(self, msg))
        self._wake_one()
        if pull is self._pull and pull.outstanding <= self._slots.free // 2:
            self._poke()

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _answer(self, reply: str, answer: bytes, *, late: bool) -> None:
        try:
            self._bus.send(wire.assemble(reply, b"", answer))
        except BusUnavailable:
            # A final word is worth saying after the reconnect, it spares a needless delivery; a nak is not: by
            # then somebody else may be at work on the message.
            if late and not self._stopped:
                self._late.append((reply, answer))

    # -- asking ---------------------------------------------------------------------------------------------

    def _poke(self) -> None:
        """Something changed: look soon whether to ask for more."""
        pull = self._pull
        if pull is not None and pull.outstanding > self._slots.free // 2:
            return
        if self._slots.free * 4 >= self._slots.total:
            self._wake.set()
        elif self._poke_later is None:
            self._poke_later = self._loop.call_later(GATHER, self._gathered)

    def _gathered(self) -> None:
        self._poke_later = None
        self._wake.set()

    def _withdraw(self) -> None:
        """No slot is free: let other processes have what we asked for."""
        if self._pull is not None and self._pull.outstanding:
            self._retire()

    def _retire(self) -> None:
        pull, self._pull = self._pull, None
        if pull is not None:
            task = self._loop.create_task(pull.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _on_connection(self, up: bool) -> None:
        self._retire()  # requests of an earlier connection are lost
        if up:
            for reply, answer in self._late:
                self._answer(reply, answer, late=False)
            self._late.clear()
        self._wake.set()

    async def _keep(self) -> None:
        """Keep requests standing, whatever happens to the server, the connection or the consumer."""
        backoff = Backoff(0.1, 2.0)
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if not self._bus.connected:
                continue
            try:
                trouble = await self._tend()
            except Exception as exc:
                trouble = str(exc)
                if not isinstance(exc, ConveyorError):
                    log.exception("bus: pulling from %s failed", self._consumer)
            if trouble:
                log.warning("bus: pulling from %s: %s", self._consumer, trouble)
                await asyncio.sleep(backoff.next())
                self._wake.set()
            elif self._pull is not None and self._pull.idle:
                backoff.reset()

    async def _tend(self) -> str:
        """Ask for what may be asked for; returns what is wrong, if anything is."""
        pull = self._pull
        if pull is not None and pull.gone:
            self._retire()
            await self._on_missing()
            self._wake.set()
            return "the consumer was missing"
        if pull is not None and (pull.refused or pull.silent()):
            self._retire()
            return pull.refused or "no sign of life of the server"
        if self._pull is None and self._slots.free:
            self._pull = pull = Pull(
                self._bus,
                self._stream,
                self._consumer,
                heartbeat=HEARTBEAT,
                take=self._take,
                changed=self._wake.set,
            )
            await pull.open()
        free = self._slots.free
        if self._pull is not None and self._pull.outstanding <= free // 2 and free:
            self._pull.ask(free - self._pull.outstanding)
        return ""
