"""Runs with a priority are begun before others: whoever is handed a dispatch looks whether another comes first.

A dispatch with a priority waits in line like any other, and is named in `overtakers.<driver>` besides. Who is handed
one of less priority takes the first that is named there, by compare-and-set, and works on that in its place: in its
slot, under its rate and its part of `max_concurrent`. When the dispatch's own turn comes, its claim tells that it has
been begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from conveyor_runtime.bus import Bus, Delivery, subjects
from conveyor_runtime.bus.early import EarlyDelivery
from conveyor_runtime.bus.messages import next_by_subject
from conveyor_runtime.bus.streams import MESSAGES
from conveyor_runtime.errors import RevisionConflict
from conveyor_runtime.models import Overtaker, Overtakers
from conveyor_runtime.models.message import H_ATTEMPT, H_PRIORITY, H_RUN, H_STEP, H_TAKEOVER
from conveyor_runtime.store import Put, State, Versioned, keys


class Overtaking:
    """Finds what comes before the deliveries of one process. Costs nothing while nobody told of a priority."""

    def __init__(self, driver: str, nodes: Sequence[str], bus: Bus, state: State) -> None:
        self._driver = driver
        self._nodes = (None, *nodes)
        self._bus = bus
        self._state = state
        self._told = asyncio.Event()
        self._told.set()  # of what was said before we listened, nobody knows
        self._one_by_one = asyncio.Lock()

    async def listen(self) -> Callable[[], Awaitable[None]]:
        """Hear of what comes before others, until the function returned is called. After a reconnect, look anew."""
        unlisten = self._bus.add_connection_listener(self._hear)
        unsubscribe = await self._bus.subscribe_core(subjects.overtake_hint(self._driver), self._hear)

        async def stop() -> None:
            unlisten()
            await unsubscribe()

        return stop

    def _hear(self, _: object) -> None:
        self._told.set()

    async def before(self, delivery: Delivery) -> Delivery | None:
        """What is to be worked on in the place of this delivery; None if its own turn has come. Raises StoreError,
        BusUnavailable."""
        if not self._told.is_set():
            return None
        async with self._one_by_one:
            while (first := await self._take(_priority(delivery))) is not None:
                message = await next_by_subject(self._bus, MESSAGES, f"drivers.{self._driver}.>", first.seq)
                if message is not None and message.seq == first.seq and _is_of(message.headers, first):
                    return EarlyDelivery(delivery, message)
        return None

    async def _take(self, priority: int) -> Overtaker | None:
        """The first that comes before this priority, and from now on nobody else's."""
        while self._told.is_set():
            found = await self._look()
            waiting = [it for it in found.record.waiting if it.node in self._nodes] if found is not None else []
            # What is left comes before another delivery, perhaps before the next.
            if waiting:
                self._told.set()
            if found is None or not waiting or waiting[0].priority <= priority:
                return None
            rest = tuple(it for it in found.record.waiting if it is not waiting[0])
            try:
                await self._state.commit(Put(keys.overtakers(self._driver), Overtakers(waiting=rest), found.revision))
            except RevisionConflict:
                continue
            return waiting[0]
        return None

    async def _look(self) -> Versioned[Overtakers] | None:
        """What is named now; what is told from now on counts for the next time."""
        self._told.clear()
        try:
            return await self._state.overtakers(self._driver)
        except BaseException:
            self._told.set()
            raise


def _priority(delivery: Delivery) -> int:
    said = delivery.headers.get(H_PRIORITY, "")
    return int(said) if said.isdecimal() else 0


def _is_of(headers: Mapping[str, str], it: Overtaker) -> bool:
    """Whether a message is the one that was named: a store restored from a backup numbers them anew."""
    return tuple(headers.get(name) for name in (H_RUN, H_STEP, H_ATTEMPT, H_TAKEOVER)) == tuple(map(str, it.numbers))
