"""One driver process: registers, pulls, hands each delivery to `Dispatch`, renews its lease, drains."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conveyor_runtime.bus import Bus, Committer, Delivery, Puller, Slots, subjects
from conveyor_runtime.bus.guard import guard_streams
from conveyor_runtime.bus.rated import RatedSlots
from conveyor_runtime.bus.streams import MESSAGES
from conveyor_runtime.config import DriverSettings
from conveyor_runtime.errors import BusUnavailable, InfrastructureError
from conveyor_runtime.kit import identity
from conveyor_runtime.orchestra import Orchestra
from conveyor_runtime.reconcile.dispatch import Deps, Dispatch
from conveyor_runtime.reconcile.driver import Driver
from conveyor_runtime.reconcile.invoke import Stop, Threads
from conveyor_runtime.reconcile.janitor import Janitor
from conveyor_runtime.reconcile.lease import Lease, LeaseLostError, capacity
from conveyor_runtime.reconcile.overtaking import Overtaking
from conveyor_runtime.reconcile.plain import PlainDispatch
from conveyor_runtime.reconcile.rate import RateGate, RateLimit
from conveyor_runtime.reconcile.registration import Registration
from conveyor_runtime.reconcile.work import Work
from conveyor_runtime.store import State
from conveyor_runtime.store.integrity import EpochChangedError, watch_epoch

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
    client: Client | None = None
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
        self._registration = Registration(
            driver, deps.bus, deps.state, () if deps.plain else nodes, settings.concurrency
        )
        self._lease = Lease(deps.state, driver.name, nodes, settings.concurrency, has=capacity(orchestra))
        self._executor = Threads(settings.concurrency, driver.name)
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
            )
        )
        self._overtaking = Overtaking(driver.name, nodes, deps.bus, deps.state)
        self._handlers: set[asyncio.Task[None]] = set()
        self._drain = asyncio.Event()
        self._hurry = asyncio.Event()
        self._look = asyncio.Event()
        self.ready = asyncio.Event()
        self._gave_up = False
        self._fenced = False
        self._gate: RateGate | None = None

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
        slots = self._slots()
        pullers = [
            Puller(self._deps.bus, MESSAGES, consumer, slots, on_missing=make)
            for consumer, make in self._registration.consumers().items()
        ]
        unsubscribe = await self._deps.bus.subscribe_core(subjects.ANY_CANCEL_HINT, lambda message: self._look.set())
        stop_overtaking = await self._overtaking.listen()
        side: list[Coroutine[Any, Any, None]] = [
            self._lease.run(self._look.set, lambda: self._stop_jobs(self._without_lease())),
            self._watch_jobs(),
            self._watch_bus(),
        ]
        if not self._deps.plain:
            side += [guard_streams(self._deps.bus), watch_epoch(self._deps.bus, self._deps.state)]
        if self._orchestra is not None and not self._deps.plain:
            side.append(Janitor(self._deps.state, self._orchestra, self._deps.installation).run())
        tasks = {asyncio.create_task(work) for work in [*side, *(self._pull(puller) for puller in pullers)]}
        tasks.add(asyncio.create_task(self._drain.wait()))  # type: ignore[arg-type]
        log.info("%s is ready for %s", self._driver.name, ", ".join(self._driver.resources))
        self.ready.set()
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            failure = next((error for task in done if (error := task.exception())), None)
            await self._stop(pullers, lost=isinstance(failure, LeaseLostError | EpochChangedError))
            if failure is not None:
                raise failure
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await unsubscribe()
            await stop_overtaking()
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _slots(self) -> Slots:
        limit = self._driver.rate_limit
        if limit is None:
            return Slots(self._settings.concurrency)
        slots = RatedSlots(self._settings.concurrency)
        self._gate = RateGate(self._driver.name, RateLimit.of(limit), self._deps.state, slots)
        return slots

    # -- loops ---------------------------------------------------------------------------------------------------

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
                if self._drain.is_set():
                    await delivery.nak()
                    return
        except InfrastructureError as error:
            log.warning("a delivery on %s is given back: %s", delivery.subject, error)
            await delivery.nak(2.0)
        except Exception:
            log.exception("a delivery on %s failed unexpectedly and is given back", delivery.subject)
            await delivery.nak(10.0)

    async def _watch_bus(self) -> None:
        """A connection that is closed for good never comes back: a process without one must not pretend to work."""
        await self._deps.bus.closed.wait()
        raise BusUnavailable("the connection to the bus is closed for good")

    async def _watch_jobs(self) -> None:
        """At every renewal and every hint, stop what is cancelled, another's, or no longer provably ours."""
        while True:
            await self._look.wait()
            self._look.clear()
            if not self._lease.held():
                self._stop_jobs(self._without_lease())
                continue
            for job in list(self._dispatch.jobs.values()):
                if job.work.plain:
                    continue
                try:
                    why = await self._why_stop(job.work.numbers)
                except InfrastructureError as error:
                    log.debug("could not look at run %s: %s", job.work.run_id, error)
                    continue
                if why is not None:
                    job.stop(why)

    async def _why_stop(self, numbers: tuple[str, str, int, int]) -> Stop | None:
        run_id, step_id, attempt, takeover = numbers
        found = await self._deps.state.run(run_id)
        if found is None:
            return Stop.STALE
        run = found.record
        state = run.steps.get(step_id)
        if run.status.terminal or state is None or (state.attempt, state.takeover) != (attempt, takeover):
            return Stop.STALE
        planned = next((step for step in run.plan or () if step.id == step_id), None)
        if run.cancel is not None and planned is not None and not planned.finally_:
            return Stop.CANCEL
        return None

    def _stuck(self, why: Stop) -> None:
        """User code of ours does not end: finish the rest and let the process go, which ends it. Without a lease, or
        beside another at the same work, there is no time for the rest."""
        self._gave_up = True
        self._fenced = self._fenced or why in (Stop.LEASE, Stop.STALE)
        self.drain()
        if self._fenced:
            self.drain()

    # -- the end -------------------------------------------------------------------------------------------------

    async def _stop(self, pullers: list[Puller], *, lost: bool) -> None:
        """Give back what was fetched, let what runs finish within the grace, hand over the rest, end the lease."""
        if self._fenced:
            await self._cancel_handlers()
            return
        for puller in pullers:
            await puller.stop()
        if lost:
            self._stop_jobs(self._without_lease())
        elif self._handlers:
            log.info("finishing %d deliveries, for at most %.0f s", len(self._handlers), self._settings.drain_grace)
            await self._wait_handlers(self._settings.drain_grace, unless=self._hurry)
            self._stop_jobs(Stop.DRAIN)
        await self._wait_handlers(self._settings.kill_grace + 5.0)
        left = [job.work for job in self._dispatch.jobs.values() if not (job.work.plain or job.stuck)]
        await self._cancel_handlers()
        if not lost:
            await self._hand_over(left)
            await self._lease.end()

    async def _cancel_handlers(self) -> None:
        for task in list(self._handlers):
            task.cancel()
        if self._handlers:
            await asyncio.wait(self._handlers)

    async def _hand_over(self, left: list[Work]) -> None:
        """Give up what could not even be handed over in time, such as a result that waits for an absent bus."""
        with suppress(TimeoutError, InfrastructureError):
            async with asyncio.timeout(_HAND_OVER):
                await asyncio.gather(*(self._dispatch.claims.give_up(work, Stop.DRAIN) for work in left))

    def _without_lease(self) -> Stop:
        return Stop.STALE if self._lease.abandoned() else Stop.LEASE

    def _stop_jobs(self, why: Stop) -> None:
        for job in list(self._dispatch.jobs.values()):
            job.stop(why)

    async def _wait_handlers(self, seconds: float, unless: asyncio.Event | None = None) -> None:
        if not self._handlers:
            return
        done = asyncio.ensure_future(asyncio.wait(self._handlers))
        waits: set[asyncio.Future[Any]] = {done}
        if unless is not None:
            waits.add(asyncio.ensure_future(unless.wait()))
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
