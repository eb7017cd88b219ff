"""The plain contract on a bus that is not ours: a Go Conveyor engine's, found by its streams.

There is no bucket for state: no claims, no leases, no installation, no dead letters. Work is done at least once, its
result published singly and the event acknowledged after the result's PubAck; that engine's own rules do the rest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from conveyor_runtime.bus import Bus, Committer, Delivery, Message, Receipt
from conveyor_runtime.bus.streams import GO_LOGS, GO_RESULTS, stream_of
from conveyor_runtime.errors import BusError, BusUnavailable
from conveyor_runtime.models import Status, utc_now
from conveyor_runtime.reconcile.dispatch import Dispatch
from conveyor_runtime.reconcile.outcome import Outcome
from conveyor_runtime.reconcile.publish import publish_result
from conveyor_runtime.reconcile.work import UndecodableError, Work, decode

log = logging.getLogger(__name__)

#: Streams of a Go Conveyor engine.
RESULTS, LOGS = GO_RESULTS, GO_LOGS

#: Deliveries of one event after which it is given up. Nobody there counts deaths, so drains and outages count as well.
MOST_DELIVERIES = 10

#: Seconds between two looks whether a missing stream is there by now.
_LOOK = 5.0


class PlainDispatch(Dispatch):
    """Handles deliveries of a bus that knows no attempts."""

    async def handle(self, delivery: Delivery) -> None:
        """See one delivery through."""
        # Nobody there writes these, and an attempt they named could not be claimed.
        delivery.headers = {}
        if delivery.num_delivered > MOST_DELIVERIES:
            await self._give_up(delivery)
        else:
            await super().handle(delivery)

    async def _give_up(self, delivery: Delivery) -> None:
        """Answer for an event that ended, with its process, everybody who was handed it."""
        reason = f"handed out {delivery.num_delivered - 1} times, and no result came of it"
        try:
            work = decode(delivery)
        except UndecodableError:
            await self._refuse(delivery, reason)
        else:
            await self._end(work, delivery, reason)

    async def _end(self, work: Work, delivery: Delivery, reason: str) -> None:
        log.error("event %s of run %s is given up: %s", work.message.id, work.run_id, reason)
        result = self._complete(work, Outcome(Status.ERROR, reason), self.deps.node, utc_now())
        await publish_result(self.deps.bus, self.deps.results, work, result)
        await delivery.term(reason)

    async def _refuse(self, delivery: Delivery, reason: str) -> None:
        """Take an undecodable message out of the way; there is no place to keep a copy."""
        log.error("a message on %s cannot be worked on and is dropped: %s", delivery.subject, reason)
        await delivery.term(reason)


class PlainCommitter(Committer):
    """Stores every message by itself: servers of Conveyor's age do not know batches, and would take one for singles."""

    def __init__(self, bus: Bus, stream: str) -> None:
        super().__init__(bus, stream, atomic=False)

    async def commit(self, unit: Sequence[Message], *, timeout: float = 10.0) -> list[Receipt]:
        """Store all messages of `unit`, in order; as `Committer.commit`, but what is refused half-way stays stored."""
        stored = await asyncio.gather(*(super(PlainCommitter, self).commit([one], timeout=timeout) for one in unit))
        return [receipt for [receipt] in stored]


class PlainLogs(PlainCommitter):
    """Stores log lines where a stream takes them. Without one they are shown live only: a result that waited for its
    log lines would wait for ever."""

    _missing = False
    _looked = float("-inf")

    async def commit(self, unit: Sequence[Message], *, timeout: float = 10.0) -> list[Receipt]:
        """As `Committer.commit`; lines that no stream takes count as stored."""
        subject = unit[0].subject
        if not self._missing or await self._is_there_again(subject):
            try:
                return await super().commit(unit, timeout=min(timeout, _LOOK))
            except BusUnavailable:
                if await self._kept(subject):
                    raise
            if not self._missing:
                log.warning("no stream on this bus keeps logs: they are published live only")
            self._missing = True
        return [Receipt(0, False) for _ in unit]

    async def _is_there_again(self, subject: str) -> bool:
        """Look now and then."""
        if time.monotonic() - self._looked < _LOOK:
            return False
        self._looked = time.monotonic()
        self._missing = not await self._kept(subject)
        return not self._missing

    async def _kept(self, subject: str) -> bool:
        """Whether a stream takes log lines; True where that cannot be known now."""
        try:
            return await stream_of(self._bus, subject) is not None
        except BusError:
            return True
