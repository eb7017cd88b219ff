"""Group commit: every write on disk before its acknowledgement, at the price of a few syncs for hundreds.

A stream that syncs each write pays one fsync per single publish, but four for a whole atomic batch. So a
committer sends lone writes at once, and what gathers while a batch is in flight becomes the next one; it
never waits for company. Everything here runs in callbacks of the event loop: no task per message, no lock.

The unit of success is what one caller gave to `commit`. A batch is refused as a whole, so each of its units
is then committed again alone, and only the guilty one fails.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass

from conveyor_runtime.bus.connection import ATTEMPT, Bus
from conveyor_runtime.bus.errors import ApiError
from conveyor_runtime.bus.flights import Flight, Flights
from conveyor_runtime.bus.pace import Pace
from conveyor_runtime.bus.refusal import CONFLICTS, DUPLICATE, NOT_ATOMIC, passing, settle
from conveyor_runtime.bus.streams import allow_atomic
from conveyor_runtime.bus.units import BATCH_HEADERS, Unit, take_batch
from conveyor_runtime.bus.wire import Message, PubAck, Receipt
from conveyor_runtime.errors import BusError, BusUnavailable, ConveyorError, RevisionConflict

__all__ = ["CommitStats", "Committer", "Message", "Receipt"]

log = logging.getLogger(__name__)

RETRY_WINDOW = 100.0
"""Seconds after its first sending in which a message may be sent again: the stream knows Msg-Ids for 120."""

TICK = 0.1
"""Seconds between two looks for what is overdue."""


@dataclass(slots=True)
class CommitStats:
    """What a committer has done since it was made."""

    commits: int = 0
    """Units stored."""
    messages: int = 0
    """Messages in them."""
    batches: int = 0
    """Atomic batches stored."""
    refused: int = 0
    """Single publishes and batches the stream said no to."""


class Committer:
    """Stores messages in one stream. One per process and stream, or their batches compete.

    `atomic` says whether the server can take batches at all; without, every unit is of one message.
    """

    def __init__(self, bus: Bus, stream: str, *, atomic: bool = True) -> None:
        self.stats = CommitStats()
        self._bus = bus
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Unit] = deque()
        self._flights = Flights(bus, self._landed)
        self._pace = Pace()
        self._batches = atomic
        self._atomic = atomic
        self._hold_until = 0.0
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._idle = asyncio.Event()
        self._stop_listening = bus.add_connection_listener(self._on_connection)

    async def commit(self, unit: Sequence[Message], *, timeout: float = 10.0) -> list[Receipt]:
        """Store all messages of `unit` or none; returns their receipts in order. `timeout` in seconds.

        Raises RevisionConflict when somebody else wrote a subject first, PayloadTooLarge, ApiError when the
        stream refuses, and BusUnavailable when nothing is known: not sent in time, or sent and not answered.
        A unit in which every message has a Msg-Id is sent again until the timeout; any other is not. While
        the bus is away it waits, within the timeout. Cancelling gives up the waiting: what is not sent yet
        never will be, what is sent may be stored.
        """
        if self._closed:
            raise BusUnavailable(f"the committer of {self._stream} is closed")
        if not unit:
            return []
        entry = Unit(unit, self._loop.create_future(), time.monotonic() + timeout)
        for message, lines in zip(unit, entry.lines, strict=True):
            self._bus.check_size(message.subject, len(message.data) + len(lines) + BATCH_HEADERS)
        self._waiting.append(entry)
        self._schedule()
        if self._timer is None:
            self._timer = self._loop.call_later(TICK, self._tick)
        return await entry.future

    async def close(self) -> None:
        """Take nothing more and wait until all that was given is settled."""
        self._closed = True
        while self._waiting or self._flights or self._tasks:
            self._idle.clear()
            await self._idle.wait()
        self._stop_listening()
        if self._timer is not None:
            self._timer.cancel()

    # -- sending --------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        # Not at once: whoever wakes in the same turn of the loop comes along.
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Send what may be sent now."""
        self._scheduled = False
        waiting = self._waiting
        while waiting and self._bus.connected and time.monotonic() >= self._hold_until:
            head = waiting[0]
            if head.future.done():
                waiting.popleft()
            elif head.single and (head.alone or not self._atomic):
                self._flights.send_singles(waiting.popleft())
            elif not self._atomic:
                waiting.popleft().fail(_not_atomic(self._stream))
            elif self._flights.batch is not None:
                break
            elif len(waiting) < self._pace.worth and all(unit.single for unit in waiting):
                if len(self._flights) + len(waiting) > self._pace.worth:
                    break  # enough is in flight; what gathers meanwhile may be worth a batch
                self._send_singles([waiting.popleft() for _ in range(len(waiting))])
            else:
                units = take_batch(waiting)
                if len(units) == 1 and units[0].single:
                    self._flights.send_singles(units[0])
                elif units:
                    self._flights.send_batch(units)
        if not (waiting or self._flights or self._tasks):
            self._idle.set()

    def _send_singles(self, units: list[Unit]) -> None:
        units = [unit for unit in units if not unit.future.done()]
        self._pace.singles_sent(len(units))
        for unit in units:
            self._flights.send_singles(unit)

    # -- answers --------------------------------------------------------------------------------------------

    def _landed(self, flight: Flight, ack: PubAck) -> None:
        if flight.into is not None:
            self._pace.single_landed(flight.sent_at)
        if ack.error:
            self.stats.refused += 1
            self._refused(flight, ack)
        elif flight.into is None:
            self._stored_batch(flight, ack)
        else:
            self._stored_single(flight.units[0], flight, ack)
        self._schedule()

    def _stored_batch(self, flight: Flight, ack: PubAck) -> None:
        self.stats.batches += 1
        self._pace.batch_landed(time.monotonic() - flight.sent_at, flight.count)
        seq = ack.seq - flight.count  # members are contiguous, and the answer has the last one's
        for unit in flight.units:
            receipts = []
            for _ in unit.messages:
                seq += 1
                receipts.append(Receipt(seq, False))
            self._count(unit)
            unit.stored(receipts)

    def _stored_single(self, unit: Unit, flight: Flight, ack: PubAck) -> None:
        if flight.stale:
            return
        unit.receipts[flight.index] = Receipt(ack.seq, ack.duplicate)
        unit.missing -= 1
        if not unit.missing:
            self._count(unit)
            unit.stored([receipt for receipt in unit.receipts if receipt])

    def _count(self, unit: Unit) -> None:
        self.stats.commits += 1
        self.stats.messages += len(unit.messages)

    def _refused(self, flight: Flight, ack: PubAck) -> None:
        """Nothing of the flight was stored: send again what may succeed, else tell its caller."""
        if flight.stale:
            return
        if ack.error == NOT_ATOMIC and self._atomic:
            self._atomic = False
            self._spawn(self._restore_atomic())
        if passing(ack):
            self._hold(random.uniform(0.03, 0.1))  # noqa: S311
            for unit in flight.units:
                unit.reason = f"{ack.description} ({ack.error})"
            self._again(flight.units)
        elif len(flight.units) > 1 or ack.error == NOT_ATOMIC:
            for unit in flight.units:
                unit.alone = True
            self._again(flight.units)
        else:
            self._refused_alone(flight.units[0], ack)

    def _refused_alone(self, unit: Unit, ack: PubAck) -> None:
        if ack.error == DUPLICATE and not unit.expects:
            # Singly, a message that is stored already is answered with its sequence, and that is success.
            self._flights.send_singles(unit)
        elif ack.error in CONFLICTS and unit.single and not unit.unknown:
            unit.fail(RevisionConflict(unit.messages[0].subject))
        elif ack.error == DUPLICATE or ack.error in CONFLICTS:
            self._spawn(self._settle(unit, ack))
        else:
            unit.fail(ApiError(self._stream, ack.error, ack.description))

    async def _settle(self, unit: Unit, ack: PubAck) -> None:
        try:
            receipts = await settle(self._bus, self._stream, unit, ack)
        except ConveyorError as exc:
            unit.fail(exc)
        else:
            self._count(unit)
            unit.stored(receipts)

    async def _restore_atomic(self) -> None:
        log.warning("bus: stream %s takes no atomic batches any more; writing singly", self._stream)
        try:
            self._atomic = await allow_atomic(self._bus, self._stream)
        except BusError as exc:
            log.warning("bus: cannot set allow_atomic of stream %s again: %s", self._stream, exc)

    # -- trouble --------------------------------------------------------------------------------------------

    def _on_connection(self, up: bool) -> None:
        if up:
            self._atomic = self._batches  # perhaps it is another server now
            self._hold_until = 0.0
            self._schedule()
        else:
            self._lost(self._flights.all(), "the connection broke before the answer")

    def _lost(self, flights: Iterable[Flight], why: str) -> None:
        """No answer will come: what carries Msg-Ids goes again, the others' callers must know."""
        now = time.monotonic()
        again: list[Unit] = []
        for flight in flights:
            self._flights.drop(flight)
            if flight.stale:
                continue
            for unit in flight.units:
                unit.unknown = True
                unit.start_singles()
                if unit.retriable and now < unit.deadline and now - unit.first_sent < RETRY_WINDOW:
                    again.append(unit)
                else:
                    unit.fail(BusUnavailable(f"{self._stream}: {why}; whether it was stored is unknown"))
        self._again(again)
        self._schedule()

    def _again(self, units: list[Unit]) -> None:
        self._waiting.extendleft(unit for unit in reversed(units) if not unit.future.done())

    def _hold(self, seconds: float) -> None:
        self._hold_until = time.monotonic() + seconds
        self._loop.call_later(seconds + 0.001, self._schedule)

    def _tick(self) -> None:
        """Look for what is overdue: attempts without an answer, and callers whose time is up."""
        # First of all, so that nothing below can end the ticking: callers wait for it.
        self._timer = self._loop.call_later(TICK, self._tick)
        now = time.monotonic()
        if overdue := self._flights.overdue():
            self._lost(overdue, f"no answer within {ATTEMPT:g} s")
        for flight in self._flights.all():
            for unit in flight.units:
                if now >= unit.deadline:
                    before = f" (before that: {unit.reason})" if unit.reason else ""
                    unit.fail(BusUnavailable(f"{self._stream}: no answer in time; outcome unknown{before}"))
        for unit in self._waiting:
            if now >= unit.deadline:
                unit.fail(self._too_late(unit))
        if self._waiting:
            self._waiting = deque(unit for unit in self._waiting if not unit.future.done())
        self._schedule()
        if not (self._waiting or self._flights):
            self._timer.cancel()
            self._timer = None

    def _too_late(self, unit: Unit) -> BusError:
        if unit.unknown:
            return BusUnavailable(f"{self._stream}: sent but not answered in time; the outcome is unknown")
        if not self._bus.connected:
            return BusUnavailable(f"{self._stream}: not connected to the bus; nothing was sent")
        if unit.reason:
            return BusUnavailable(f"{self._stream}: {unit.reason}; nothing was stored")
        return BusUnavailable(f"{self._stream}: its turn did not come in time; nothing was sent")

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._schedule()


def _not_atomic(stream: str) -> BusError:
    return BusError(
        f"stream {stream} takes no atomic batches: its allow_atomic is off, and several messages cannot be "
        "stored together without it (a Go Conveyor engine on the same bus switches it off)"
    )
