"""A stored message that is worked on before its turn, in the place of a delivery."""

from __future__ import annotations

from conveyor_runtime.bus.puller import Delivery
from conveyor_runtime.bus.wire import Origin, StoredMsg

__all__ = ["EarlyDelivery"]


class EarlyDelivery(Delivery):
    """Like the delivery of `message`, which is still to come: so what is answered to this one is told to nobody.

    Slot and hold on the server are those of `place`, whose holder answers for it afterwards.
    """

    def __init__(self, place: Delivery, message: StoredMsg) -> None:
        self._place = place
        self._origin = Origin(1, message.seq, 0, int(message.time.timestamp() * 1e9), 0)
        self.subject = message.subject
        self.data = message.data
        self.headers = message.headers
        self.stream_seq = self._origin.stream_seq
        self.num_delivered = self._origin.num_delivered

    def in_progress(self) -> None:
        """Still at it: the place is held."""
        self._place.in_progress()

    def _settle(self, answer: bytes, *, late: bool) -> None:
        pass
