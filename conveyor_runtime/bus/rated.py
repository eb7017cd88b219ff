"""Slots for work that has a rate: a message is asked for when one more may begin, not when there is room for it."""

from __future__ import annotations

import asyncio

from conveyor_runtime.bus.puller import Slots

__all__ = ["RatedSlots"]


class RatedSlots(Slots):
    """At most `n` slots, of which one at a time is free: whoever has taken a message says when the next may come."""

    def __init__(self, n: int) -> None:
        super().__init__(1)
        self._rest = n - 1
        self._pause: asyncio.TimerHandle | None = None

    def another(self) -> None:
        """The message taken last may be worked on: take one more, if there is room."""
        if self._rest and not self.free and self._pause is None:
            self._rest -= 1
            super()._give()

    def pause(self, seconds: float) -> None:
        """Take none for so long."""
        if self._pause is None:
            self._pause = asyncio.get_running_loop().call_later(seconds, self._resume)
            if self._take():
                self._rest += 1

    def _resume(self) -> None:
        self._pause = None
        self.another()

    def _give(self) -> None:
        if self.free or self._pause is not None:
            self._rest += 1
        else:
            super()._give()
