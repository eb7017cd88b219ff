"""What a committer has sent and not yet heard of."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from nats.aio.msg import Msg
from nats.nuid import NUID

from conveyor_runtime.bus import wire
from conveyor_runtime.bus.connection import ATTEMPT, Bus
from conveyor_runtime.bus.units import Unit
from conveyor_runtime.bus.wire import PubAck, Receipt

__all__ = ["Flight", "Flights"]


class Flight:
    """Messages under way that are answered by one PubAck: a batch of units, or one message of a unit."""

    __slots__ = ("count", "index", "into", "reply", "sent_at", "units")

    def __init__(self, units: list[Unit], sent_at: float) -> None:
        self.units = units
        self.sent_at = sent_at
        self.reply = ""
        self.count = sum(len(unit.messages) for unit in units)
        self.index = 0
        """Which message of its unit, for a single one."""
        self.into: list[Receipt | None] | None = None
        """Where the receipt of a single message goes; None for a batch."""

    @property
    def stale(self) -> bool:
        """One of several singles of a unit that has been sent anew since: what becomes of it counts no more."""
        return self.into is not None and self.into is not self.units[0].receipts


class Flights:
    """Sends units, singly or as an atomic batch, and calls `landed` with each answer."""

    def __init__(self, bus: Bus, landed: Callable[[Flight, PubAck], None]) -> None:
        self.batch: Flight | None = None
        """The one batch in flight: more of them would only queue in the server."""
        self._bus = bus
        self._report = landed
        self._flying: dict[str, Flight] = {}
        self._batch_ids = NUID()

    def __len__(self) -> int:
        return len(self._flying)

    def all(self) -> list[Flight]:
        """Everything in flight, oldest first."""
        return list(self._flying.values())

    def overdue(self) -> list[Flight]:
        """What has gone unanswered for longer than an attempt may take."""
        before = time.monotonic() - ATTEMPT
        return [flight for flight in self._flying.values() if flight.sent_at < before]

    def send_singles(self, unit: Unit) -> None:
        """Publish each message of `unit` by itself."""
        now = time.monotonic()
        unit.first_sent = min(unit.first_sent, now)
        receipts = unit.start_singles()
        for index, (message, lines) in enumerate(zip(unit.messages, unit.lines, strict=True)):
            flight = Flight([unit], now)
            flight.index, flight.into = index, receipts
            self._launch(flight)
            self._bus.send(wire.assemble(message.subject, lines, message.data, flight.reply))

    def send_batch(self, units: list[Unit]) -> None:
        """Publish `units` as one atomic batch."""
        now = time.monotonic()
        for unit in units:
            unit.first_sent = min(unit.first_sent, now)
        flight = self.batch = Flight(units, now)
        self._launch(flight)
        self._bus.send(_frames(units, self._batch_ids.next().decode(), flight.count, flight.reply))

    def drop(self, flight: Flight) -> None:
        """Expect no answer any more."""
        self._flying.pop(flight.reply, None)
        self._bus.forget(flight.reply)
        if flight is self.batch:
            self.batch = None

    def _launch(self, flight: Flight) -> None:
        flight.reply = self._bus.on_reply(partial(self._landed, flight))
        self._flying[flight.reply] = flight

    def _landed(self, flight: Flight, msg: Msg) -> None:
        self.drop(flight)
        self._report(flight, wire.decode_ack(msg))


def _frames(units: list[Unit], batch_id: str, count: int, reply: str) -> bytes:
    """The frames of one atomic batch of `count` messages; only the last is answered."""
    frames = []
    seq = 0
    for unit in units:
        for message, lines in zip(unit.messages, unit.lines, strict=True):
            seq += 1
            batch = f"Nats-Batch-Id: {batch_id}\r\nNats-Batch-Sequence: {seq}\r\n".encode()
            if seq < count:
                frames.append(wire.assemble(message.subject, batch + lines, message.data))
            else:
                batch += b"Nats-Batch-Commit: 1\r\n"
                frames.append(wire.assemble(message.subject, batch + lines, message.data, reply))
    return b"".join(frames)
