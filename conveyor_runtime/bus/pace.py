"""What a write costs singly and in a batch, measured as they go: it decides how many are worth a batch.

A stream that syncs every write pays for each single, and a dozen of them cost as much as a batch. One that syncs now
and then takes singles many times faster, while a batch costs what it did: a staging area of its own on disk.
"""

from __future__ import annotations

import time

__all__ = ["Pace"]

FIRST = 12.0
"""Messages worth a batch as long as nothing has been measured: right for a stream that syncs each write."""

_BATCH = 0.0025
"""Seconds that a batch costs by itself, as long as nothing has been measured."""

MOST = 256.0

AGAIN = 5.0
"""Seconds without a batch after which `FIRST` are worth one: what a batch cost long ago says little, and only a batch
tells what one costs now."""

_SHARE = 0.01
"""What a message adds to a batch, as a part of what the batch costs by itself (measured: 25 us and 2.5 ms)."""

_CHEAPER = 0.3
"""How much a measurement below what is known counts. Our own loop and what other processes have the server do only ever
add to a cost, so the low ones are the true ones."""

_DEARER = 0.002
"""How much one above it counts: there are hundreds for each low one."""

_OUTLIER = 3.0
"""Times the known cost that one may count for: a server that stood still for a while says nothing of its pace."""


class Pace:
    """Times of one stream in one process."""

    def __init__(self) -> None:
        self._worth = FIRST
        self._single = _BATCH / FIRST
        self._batch = _BATCH
        self._batch_at = time.monotonic()
        self._sent_at = 0.0
        self._sent = 0
        self._missing = 0

    @property
    def worth(self) -> float:
        """The number of messages from which a batch is the faster way."""
        return FIRST if self._worth > FIRST and time.monotonic() - self._batch_at > AGAIN else self._worth

    def singles_sent(self, count: int) -> None:
        """So many were just sent at once. One such burst at a time is measured: the stream takes one message after
        another, so each costs at most its share of the time until all are stored."""
        if not self._missing:
            self._sent_at, self._sent, self._missing = time.monotonic(), count, count

    def single_landed(self, sent_at: float) -> None:
        """A single that was sent then is answered."""
        if not self._missing or sent_at < self._sent_at:
            return
        self._missing -= 1
        if not self._missing:
            self._single = _follow(self._single, (time.monotonic() - self._sent_at) / self._sent)
            self._judge()

    def batch_landed(self, seconds: float, count: int) -> None:
        """A batch of `count` messages is stored."""
        self._batch = _follow(self._batch, seconds / (1 + count * _SHARE))
        self._batch_at = time.monotonic()
        self._judge()

    def _judge(self) -> None:
        gain = self._single - self._batch * _SHARE
        self._worth = min(max(self._batch / gain, FIRST / 2), MOST) if gain > 0 else MOST


def _follow(known: float, measured: float) -> float:
    """What a thing costs, after one more measurement."""
    if measured < known:
        return known + (measured - known) * _CHEAPER
    return known + (min(measured, known * _OUTLIER) - known) * _DEARER
