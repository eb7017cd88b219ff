"""A whole runtime in one process on a real bus: an engine, and drivers whose reconcile the test writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from conveyor_runtime.bus import Bus, Committer, subjects
from conveyor_runtime.bus.streams import MESSAGES, RESULTS, consumer_info, list_consumers
from conveyor_runtime.config import ApiSettings, DriverSettings
from conveyor_runtime.daemon.connect import connect, state_on
from conveyor_runtime.daemon.control import Control, control_plane
from conveyor_runtime.engine import Accepted, Draft, Engine, Intake, describe_run
from conveyor_runtime.engine.sweep import Sweep
from conveyor_runtime.models import LogLine, ResourceDefinition, Run
from conveyor_runtime.reconcile import Driver, DriverManager
from conveyor_runtime.reconcile.manager import ManagerDeps
from conveyor_runtime.store import KvStore, LogStore, State


@dataclass
class PretendedOrchestra:
    """A node without containers: what a driver process asks of its backends before user code runs."""

    node: str
    backends: tuple[()] = ()

    @property
    def default(self) -> PretendedOrchestra:
        return self

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.node,)

    def pick(self, name: str | None) -> PretendedOrchestra:
        return self

    def by_node(self, node: str) -> PretendedOrchestra:
        return self


@dataclass
class Cluster:
    """One control plane on a bus; `add` drivers, `post` resources, `ended` waits for a run's end."""

    bus: Bus
    state: State
    engine: Engine
    intake: Intake
    sweep: Sweep
    stack: AsyncExitStack
    managers: list[tuple[DriverManager, asyncio.Task[None]]] = field(default_factory=list)

    async def define(self, type_: str, **fields: Any) -> None:
        """A definition that takes any object."""
        definition = ResourceDefinition(name=type_, schema={"type": "object"}, **fields)
        await self.intake.definitions.write(definition, may_exist=True)

    async def pipeline(self, name: str, type_: str, *drivers: str, finally_: tuple[str, ...] = (), **step: Any) -> None:
        """A pipeline of these drivers."""
        spec = {
            "resource": type_,
            "steps": [{"id": driver, "name": driver, "driver": driver, **step} for driver in drivers],
            "finally": [{"id": driver, "name": driver, "driver": driver} for driver in finally_],
        }
        await self.intake.update(Draft("pipeline", name, spec), create_missing=True)

    async def post(self, type_: str, name: str, pipeline: str | None = None, **spec: Any) -> Accepted:
        """A new resource."""
        return await self.intake.create(Draft(type_, name, spec, pipeline))

    async def put(self, type_: str, name: str, pipeline: str | None = None, **spec: Any) -> Accepted:
        """A resource's new spec."""
        return await self.intake.update(Draft(type_, name, spec, pipeline))

    async def add(self, driver: Driver, *, node: str = "", orchestra: Any = None, **settings: Any) -> DriverManager:
        """Start a process's worth of a driver, on a connection of its own; on a pretended node if one is named."""
        bus = await Bus.connect(self.url, name=driver.name)
        self.stack.push_async_callback(bus.close)
        committers = [Committer(bus, stream) for stream in ("KV_cv-state", "cv-results", "cv-logs")]
        deps = ManagerDeps(
            bus=bus,
            state=State(KvStore(bus, committers[0])),
            results=committers[1],
            logs=committers[2],
            installation="test",
            orchestra=cast(Any, PretendedOrchestra(node)) if node else orchestra,
        )
        manager = DriverManager(driver, DriverSettings(**{"drain_grace": 5.0, "kill_grace": 0.5, **settings}), deps)
        task = asyncio.create_task(manager.run())
        self.managers.append((manager, task))
        ready = asyncio.create_task(manager.ready.wait())
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            ready.cancel()
            await task
        return manager

    url: str = ""

    async def stop(self, manager: DriverManager) -> None:
        """Drain a driver process."""
        task = next(task for it, task in self.managers if it is manager)
        manager.drain()
        await task

    async def results_waiting(self) -> int:
        """How many results are stored that no engine has acknowledged yet."""
        info = await consumer_info(self.bus, RESULTS, subjects.RESULT_CONSUMER)
        assert info is not None
        return int(info["num_pending"] + info["num_ack_pending"])

    async def dispatches_waiting(self) -> int:
        """How many dispatches are stored that their drivers have not acknowledged yet."""
        infos = await list_consumers(self.bus, MESSAGES)
        return sum(int(info["num_pending"] + info["num_ack_pending"]) for info in infos)

    async def until(self, true: Callable[[], Any], seconds: float = 15.0) -> Any:
        """Wait until `true()` holds, looking at every change of the state."""
        changed = asyncio.Event()
        self.state.view.listen(lambda kind, parts: changed.set())
        async with asyncio.timeout(seconds):
            while not (value := true()):
                changed.clear()
                await changed.wait()
        return value

    async def ended(self, run_id: str, seconds: float = 15.0) -> Run:
        """The run, once it is terminal."""

        def look() -> bool:
            found = self.state.view.run(run_id)
            return found is not None and found.record.status.terminal

        try:
            await self.until(look, seconds)
        except TimeoutError:
            raise AssertionError(f"run {run_id} does not end: {self.run(run_id)}") from None
        return self.run(run_id)

    def run(self, run_id: str) -> Run:
        """The run as it is shown."""
        found = self.state.view.run(run_id)
        assert found is not None, f"there is no run {run_id}"
        return describe_run(found.record, self.state.view, is_dead=self.engine.liveness.is_dead)

    async def gone(self, type_: str, name: str) -> None:
        """Until the resource is removed."""
        await self.until(lambda: self.state.view.resource(type_, name) is None)

    async def logs(self, run_id: str) -> list[LogLine]:
        """What is stored of a run's log."""
        return [entry.line async for entry in LogStore(self.bus).read(run_id)]


@asynccontextmanager
async def cluster_on(url: str, *, replicas: int | None = None) -> AsyncIterator[Cluster]:
    """The product's own control plane on the bus at `url`; a part of it that fails, fails the test."""
    async with AsyncExitStack() as stack:
        bus = await connect(url, name="engine", replicas=replicas)
        stack.push_async_callback(bus.close)
        started: asyncio.Future[Control] = asyncio.get_running_loop().create_future()
        over = asyncio.Event()

        async def serve() -> None:
            async with state_on(bus) as state, control_plane(bus, state, ApiSettings(port=0)) as control:
                started.set_result(control)
                await over.wait()

        # A task of its own: when a part fails, the block is cancelled, and a fixture's task is none that can be.
        serving = asyncio.create_task(serve())
        waits: set[asyncio.Future[Any]] = {serving, started}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
        services = started.result().services
        sweep = Sweep(services.engine, bus)
        cluster = Cluster(bus, services.state, services.engine, services.intake, sweep, stack, url=url)
        try:
            yield cluster
        finally:
            for manager, _ in cluster.managers:
                manager.drain()
                manager.drain()
            if cluster.managers:
                await asyncio.wait([task for _, task in cluster.managers])
            over.set()
            await serving
