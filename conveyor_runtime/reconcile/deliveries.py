"""The way in of a delivery: pulled into a slot, let pass by the rate limit, overtaken by what has priority; then it is
`Dispatch`'s, which asks whether its node has room and claims it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from conveyor_runtime.bus import Bus, Delivery, Puller, Slots
from conveyor_runtime.bus.rated import RatedSlots
from conveyor_runtime.bus.streams import MESSAGES
from conveyor_runtime.errors import InfrastructureError
from conveyor_runtime.reconcile.dispatch import Dispatch
from conveyor_runtime.reconcile.driver import Driver
from conveyor_runtime.reconcile.overtaking import Overtaking
from conveyor_runtime.reconcile.rate import RateGate, RateLimit
from conveyor_runtime.store import State

log = logging.getLogger(__name__)


class Deliveries:
    """Those of one process: at most `concurrency` at a time, each seen through whatever happens."""

    def __init__(
        self, driver: Driver, concurrency: int, nodes: Sequence[str], bus: Bus, state: State, dispatch: Dispatch
    ) -> None:
        self._bus = bus
        self._dispatch = dispatch
        self._overtaking = Overtaking(driver.name, nodes, bus, state)
        self._gate: RateGate | None = None
        if driver.rate_limit is None:
            self._slots = Slots(concurrency)
        else:
            self._slots = slots = RatedSlots(concurrency)
            self._gate = RateGate(driver.name, RateLimit.of(driver.rate_limit), state, slots)
        self._pullers: list[Puller] = []
        self._handlers: set[asyncio.Task[None]] = set()
        self._draining = False

    def __len__(self) -> int:
        """How many are being handled."""
        return len(self._handlers)

    async def open(
        self, consumers: Mapping[str, Callable[[], Awaitable[None]]]
    ) -> tuple[list[Coroutine[Any, Any, None]], Callable[[], Awaitable[None]]]:
        """The loops that pull from the consumers named, each with what makes it anew, and what to call after them."""
        self._pullers = [
            Puller(self._bus, MESSAGES, consumer, self._slots, on_missing=make) for consumer, make in consumers.items()
        ]
        stop_overtaking = await self._overtaking.listen()
        return [self._pull(puller) for puller in self._pullers], stop_overtaking

    async def stop(self) -> None:
        """Pull no more, and give back what nobody handles yet."""
        self._draining = True
        for puller in self._pullers:
            await puller.stop()

    async def handled(self, seconds: float, unless: asyncio.Event | None = None) -> None:
        """Wait until none is being handled, for at most so long, or until `unless` is set."""
        if not self._handlers:
            return
        done = asyncio.ensure_future(asyncio.wait(self._handlers))
        waits: set[asyncio.Future[Any]] = {done}
        if unless is not None:
            waits.add(asyncio.ensure_future(unless.wait()))
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def cancel(self) -> None:
        """Handle none any more."""
        for task in list(self._handlers):
            task.cancel()
        if self._handlers:
            await asyncio.wait(self._handlers)

    async def _pull(self, puller: Puller) -> None:
        while True:
            delivery = await puller.next()
            task = asyncio.create_task(self._handle(delivery), name=f"delivery:{delivery.stream_seq}")
            self._handlers.add(task)
            task.add_done_callback(self._handlers.discard)

    async def _handle(self, delivery: Delivery) -> None:
        """One delivery, whatever happens: a failure of ours gives it back instead of blocking others."""
        try:
            while self._gate is None or await self._gate.lets_pass(delivery):
                first = await self._overtaking.before(delivery)
                await self._dispatch.handle(first or delivery)
                if first is None:
                    return
                if self._draining:
                    await delivery.nak()
                    return
        except InfrastructureError as error:
            log.warning("a delivery on %s is given back: %s", delivery.subject, error)
            await delivery.nak(2.0)
        except Exception:
            log.exception("a delivery on %s failed unexpectedly and is given back", delivery.subject)
            await delivery.nak(10.0)
