"""One driver process: registers, works on its deliveries, renews its lease, drains."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conveyor_runtime.bus import Bus, Committer, subjects
from conveyor_runtime.bus.guard import guard_streams
from conveyor_runtime.config import DriverSettings
from conveyor_runtime.errors import BusUnavailable, InfrastructureError
from conveyor_runtime.kit import identity
from conveyor_runtime.orchestra import Orchestra
from conveyor_runtime.reconcile.deliveries import Deliveries
from conveyor_runtime.reconcile.deps import Deps
from conveyor_runtime.reconcile.dispatch import Dispatch
from conveyor_runtime.reconcile.driver import Driver
from conveyor_runtime.reconcile.invoke import Stop, Threads
from conveyor_runtime.reconcile.janitor import Janitor
from conveyor_runtime.reconcile.jobs import Jobs
from conveyor_runtime.reconcile.lease import Lease, LeaseLostError, capacity
from conveyor_runtime.reconcile.plain import PlainDispatch
from conveyor_runtime.reconcile.registration import Registration
from conveyor_runtime.reconcile.work import Work
from conveyor_runtime.store import State
from conveyor_runtime.store.integrity import EpochChangedError, watch_epoch
from conveyor_runtime.telemetry import metrics

if TYPE_CHECKING:  # `client` stands above this room: whoever builds a process hands one in
    from conveyor_runtime.client import Client

log = logging.getLogger(__name__)

#: Seconds that a stopping process takes to give up what is left in its hands.
_HAND_OVER = 3.0


@dataclass(frozen=True)
class ManagerDeps:
    """What a driver process is given: connected, with its streams ensured. `plain` on a bus that is not ours; the state
    is then the process's own, and its lease proves only that it has not stood still."""

    bus: Bus
    state: State
    results: Committer
    logs: Committer
    installation: str
    epoch: str = ""
    orchestra: Orchestra | None = None
    client: Callable[[], Client] | None = None
    plain: bool = False


class DriverManager:
    """Runs one driver until it is stopped.

    `await run()` returns after a drain; it raises LeaseLostError when others took this process for dead, or
    EpochChangedError when the store is another than before,
    BusUnavailable when the connection is closed for good, and ConfigError when the driver's name is taken. Look at
    `stuck` afterwards, however it ended.
    """

    def __init__(self, driver: Driver, settings: DriverSettings, deps: ManagerDeps) -> None:
        _ = driver.payload_type  # a bad annotation is said now, not at the first delivery
        self._driver = driver
        self._settings = settings
        self._deps = deps
        orchestra = deps.orchestra if driver.sandbox else None
        node = f"host-{identity.machine_id()}" if orchestra is None else orchestra.default.node
        nodes = tuple(orchestra.nodes) if orchestra else (node,)
        self._orchestra = orchestra
        self._registration = Registration(driver, deps.bus, deps.state, () if deps.plain else nodes)
        self._lease = Lease(deps.state, driver.name, nodes, settings.concurrency, has=capacity(orchestra))
        self._executor = Threads(settings.concurrency, driver.name)
        self._jobs = jobs = Jobs(deps.state, self._lease)
        metrics.JOBS.labels(driver=driver.name).set_function(lambda: len(jobs))
        metrics.SLOTS.labels(driver=driver.name).set(settings.concurrency)
        self._dispatch = (PlainDispatch if deps.plain else Dispatch)(
            Deps(
                driver=driver,
                settings=settings,
                installation=deps.installation,
                epoch=deps.epoch,
                bus=deps.bus,
                state=deps.state,
                results=deps.results,
                logs=deps.logs,
                lease=self._lease,
                executor=self._executor,
                node=node,
                orchestra=orchestra,
                client=deps.client,
                stuck=self._stuck,
            ),
            self._jobs,
        )
        self._deliveries = Deliveries(driver, settings.concurrency, nodes, deps.bus, deps.state, self._dispatch)
        self._drain = asyncio.Event()
        self._hurry = asyncio.Event()
        self.ready = asyncio.Event()
        self._gave_up = False
        self._fenced = False

    @property
    def stuck(self) -> bool:
        """Whether user code that was asked to end still runs, so that only the end of this process ends it."""
        return self._gave_up or self._executor.busy

    def drain(self) -> None:
        """Stop taking work and end once what is in hand is done or the grace is over; again: end it at once."""
        if self._drain.is_set():
            self._hurry.set()
        self._drain.set()

    async def run(self) -> None:
        """Register, work, drain."""
        await self._registration.register()
        await self._lease.renew()
        pulls, end_pulls = await self._deliveries.open(self._registration.consumers())
        unsubscribe = await self._deps.bus.subscribe_core(subjects.ANY_CANCEL_HINT, lambda message: self._jobs.look())
        side: list[Coroutine[Any, Any, None]] = [
            self._lease.run(self._jobs.look, self._jobs.stop),
            self._jobs.watch(),
            self._watch_bus(),
        ]
        if not self._deps.plain:
            side.append(self._dispatch.claims.settle())
            side += [guard_streams(self._deps.bus), watch_epoch(self._deps.bus, self._deps.state)]
        if self._orchestra is not None and not self._deps.plain:
            side.append(Janitor(self._deps.state, self._orchestra, self._deps.installation).run())
        tasks = {asyncio.create_task(work) for work in [*side, *pulls]}
        tasks.add(asyncio.create_task(self._drain.wait()))  # type: ignore[arg-type]
        log.info("%s is ready for %s", self._driver.name, ", ".join(self._driver.resources))
        self.ready.set()
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            failure = next((error for task in done if (error := task.exception())), None)
            await self._stop(lost=isinstance(failure, LeaseLostError | EpochChangedError))
            if failure is not None:
                raise failure
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await unsubscribe()
            await end_pulls()
            self._executor.shutdown(wait=False, cancel_futures=True)

    async def _watch_bus(self) -> None:
        """A connection that is closed for good never comes back: a process without one must not pretend to work."""
        await self._deps.bus.closed.wait()
        raise BusUnavailable("the connection to the bus is closed for good")

    def _stuck(self, why: Stop) -> None:
        """User code of ours does not end: finish the rest and let the process go, which ends it. Without a lease, or
        beside another at the same work, there is no time for the rest."""
        self._gave_up = True
        self._fenced = self._fenced or why in (Stop.LEASE, Stop.STALE)
        self.drain()
        if self._fenced:
            self.drain()

    async def _stop(self, *, lost: bool) -> None:
        """Give back what was fetched, let what runs finish within the grace, hand over the rest, end the lease."""
        if self._fenced:
            await self._deliveries.cancel()
            return
        await self._deliveries.stop()
        if lost:
            self._jobs.stop()
        elif self._deliveries:
            log.info("finishing %d deliveries, for at most %.0f s", len(self._deliveries), self._settings.drain_grace)
            await self._deliveries.handled(self._settings.drain_grace, unless=self._hurry)
            self._jobs.stop(Stop.DRAIN)
        await self._deliveries.handled(self._settings.kill_grace + 5.0)
        left = [job.work for job in self._jobs if not (job.work.plain or job.stuck)]
        await self._deliveries.cancel()
        if not lost:
            await self._hand_over(left)
            await self._lease.end()

    async def _hand_over(self, left: list[Work]) -> None:
        """Give up what could not even be handed over in time, such as a result that waits for an absent bus."""
        with suppress(TimeoutError, InfrastructureError):
            async with asyncio.timeout(_HAND_OVER):
                await asyncio.gather(*(self._dispatch.claims.give_up(work, Stop.DRAIN) for work in left))
