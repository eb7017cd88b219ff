"""Keeps deliveries from being handed to another worker while this one is at them."""

from __future__ import annotations

import asyncio

from conveyor_runtime.bus import Delivery

#: Seconds between two signs to the server that a delivery is still worked on; a third of the consumer's ack_wait.
HEARTBEAT = 10.0


class Heartbeats:
    """Tells the server of every delivery in hand that it is still worked on. One timer for all: most are done before
    it fires, and a task for each would cost more than all the rest of its handling."""

    def __init__(self) -> None:
        self._in_hand: set[Delivery] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, delivery: Delivery) -> None:
        """From now on the delivery is worked on."""
        self._in_hand.add(delivery)
        if self._timer is None:
            self._plan()

    def end(self, delivery: Delivery) -> None:
        """It is worked on no more."""
        self._in_hand.discard(delivery)

    def _plan(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(HEARTBEAT, self._beat)

    def _beat(self) -> None:
        self._timer = None
        for delivery in self._in_hand:
            delivery.in_progress()
        if self._in_hand:
            self._plan()
