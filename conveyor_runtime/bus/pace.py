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

_SHARE = 0.01
"""What a message adds to a batch, as a part of what the batch costs by itself (measured: 25 us and 2.5 ms)."""

_WEIGHT = 0.05
"""How much one single counts against those before it."""

_BATCH_WEIGHT = 0.2


class Pace:
    """Times of one stream in one process. `worth` is the number of messages from which a batch is the faster way."""

    def __init__(self) -> None:
        self.worth = FIRST
        self._single = 0.0
        self._batch = 0.0
        self._landed_at = 0.0

    def single_landed(self, *, more: bool) -> None:
        """A single is stored; `more` of them are under way. What each costs shows only while they queue."""
        now = time.monotonic()
        if self._landed_at:
            took = now - self._landed_at
            self._single += (took - self._single) * (_WEIGHT if self._single else 1.0)
            self._judge()
        self._landed_at = now if more else 0.0

    def batch_landed(self, seconds: float, count: int) -> None:
        """A batch of `count` messages is stored."""
        alone = seconds / (1 + count * _SHARE)
        self._batch += (alone - self._batch) * (_BATCH_WEIGHT if self._batch else 1.0)
        self._judge()

    def _judge(self) -> None:
        if self._single and self._batch:
            gain = self._single - self._batch * _SHARE
            self.worth = min(max(self._batch / gain, FIRST / 2), MOST) if gain > 0 else MOST
