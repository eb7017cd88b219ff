"""What a write costs singly and in a batch, measured as they go: it decides how many are worth a batch.

A stream that syncs every write pays for each single, and a dozen of them cost as much as a batch. One that syncs now
and then takes singles many times faster, while a batch costs what it did: a staging area of its own on disk.
"""

from __future__ import annotations

import time

__all__ = ["Pace"]

FIRST = 12.0
"""Messages worth a batch as long as nothing has been measured: right for a stream that syncs each write."""

MOST = 256.0

AGAIN = 5.0
"""Seconds without a batch after which `FIRST` are worth one: what a batch cost long ago says little, and only a batch
tells what one costs now."""

_SHARE = 0.01
"""What a message adds to a batch, as a part of what the batch costs by itself (measured: 25 us and 2.5 ms)."""

_WEIGHT = 0.05
"""How much one single counts against those before it."""

_BATCH_WEIGHT = 0.2

_OUTLIER = 3.0
"""Times the usual cost that a batch may count for: a server that stood still for a while says nothing of its pace."""


class Pace:
    """Times of one stream in one process."""

    def __init__(self) -> None:
        self._worth = FIRST
        self._single = 0.0
        self._batch = 0.0
        self._batch_at = time.monotonic()
        self._landed = 0
        self._since = 0.0

    @property
    def worth(self) -> float:
        """The number of messages from which a batch is the faster way."""
        return FIRST if self._worth > FIRST and time.monotonic() - self._batch_at > AGAIN else self._worth

    def single_landed(self) -> None:
        """A single is stored. Several that one read of the connection told of count together, at `turn`."""
        self._landed += 1

    def turn(self, *, more: bool) -> None:
        """What had been told is taken in; `more` singles are under way. What each costs shows only while they queue."""
        if not self._landed:
            return
        now = time.monotonic()
        if self._since:
            took = (now - self._since) / self._landed
            self._single += (took - self._single) * (1 - (1 - _WEIGHT) ** self._landed if self._single else 1.0)
            self._judge()
        self._since, self._landed = (now if more else 0.0), 0

    def batch_landed(self, seconds: float, count: int) -> None:
        """A batch of `count` messages is stored."""
        alone = seconds / (1 + count * _SHARE)
        if self._batch:
            alone = min(alone, self._batch * _OUTLIER)
        self._batch += (alone - self._batch) * (_BATCH_WEIGHT if self._batch else 1.0)
        self._batch_at = time.monotonic()
        self._judge()

    def _judge(self) -> None:
        if self._single and self._batch:
            gain = self._single - self._batch * _SHARE
            self._worth = min(max(self._batch / gain, FIRST / 2), MOST) if gain > 0 else MOST
