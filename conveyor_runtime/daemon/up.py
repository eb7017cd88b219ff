"""`up`: everything in one process tree, nats-server, API and engine, and a child process per driver. `serve` is that
without drivers, and how any process of ours with an API is put together."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pipelines
from conveyor_runtime.bus import EmbeddedServer
from conveyor_runtime.config import ApiSettings, BusSettings, DriverSettings
from conveyor_runtime.daemon.connect import connect, state_on
from conveyor_runtime.daemon.control import Control, control_plane, fail_together
from conveyor_runtime.daemon.ready import told
from conveyor_runtime.daemon.restore import check_restored
from conveyor_runtime.daemon.soundness import sound_store
from conveyor_runtime.engine import Draft
from conveyor_runtime.errors import ConfigError
from conveyor_runtime.kit.child import Child
from conveyor_runtime.models import ResourceDefinition
from conveyor_runtime.reconcile import installed_drivers

log = logging.getLogger(__name__)

#: Seconds the drivers get to register before `up` says it is not ready.
_DRIVERS_READY = 60.0

#: How a driver's process ends whose settings cannot work (`cli.errors.ExitCode.USAGE`).
_EXIT_CONFIG = 2


@dataclass(frozen=True)
class UpSettings:
    """`drivers` None = all that are installed, () = none."""

    bus: BusSettings = field(default_factory=BusSettings)
    api: ApiSettings = field(default_factory=ApiSettings)
    driver: DriverSettings = field(default_factory=DriverSettings)
    drivers: tuple[str, ...] | None = None
    backend_file: Path | None = None
    """Where `driver.backends` was read from, for the drivers' processes to read."""
    ready_file: Path | None = None
    renew_shipped: bool = True
    """Make the definitions and pipelines that ship what this version ships, whatever became of them."""


@dataclass(frozen=True)
class Running:
    """What runs, and where. The NATS URL carries its credentials."""

    api_url: str
    nats_url: str
    token: str
    control: Control
    children: tuple[Child, ...] = ()

    def hurry(self) -> None:
        """Have the drivers stop their work instead of finishing it."""
        for child in self.children:
            child.hurry()

    @property
    def addresses(self) -> Mapping[str, str]:
        """For other programs."""
        return {"api": self.api_url, "nats": self.nats_url, "token": self.token}


@asynccontextmanager
async def _bus_url(settings: BusSettings) -> AsyncIterator[tuple[str, Callable[[], bool]]]:
    """The URL of the bus: the one given, else that of an embedded server for as long as the block lasts; and whether
    the disk of that server is full."""
    if settings.url:
        yield settings.url, lambda: False
        return
    check_restored(settings.data_dir / "nats")
    server = EmbeddedServer(settings.data_dir / "nats", host=settings.host, port=settings.port, sync=settings.sync)
    await server.start()
    try:
        yield server.url, lambda: server.disk_is_full
    finally:
        await server.stop()


@asynccontextmanager
async def up(settings: UpSettings) -> AsyncIterator[Running]:
    """Start everything; ready when the block begins, stopped when it ends. Raises ConfigError, BusError."""
    names = _driver_names(settings.drivers)
    async with AsyncExitStack() as stack:
        url, disk_is_full = await stack.enter_async_context(_bus_url(settings.bus))
        bus = await connect(url, name="conveyor-control", patience=30.0, replicas=settings.bus.replicas)
        stack.push_async_callback(bus.close)
        state = await stack.enter_async_context(state_on(bus))
        await stack.enter_async_context(sound_store(bus, state, settings.bus))
        control = await stack.enter_async_context(control_plane(bus, state, settings.api, disk_is_full))
        await _register_shipped(control, renew=settings.renew_shipped)
        addresses = Running(control.url, url, settings.api.token, control)
        children = await stack.enter_async_context(_children(names, settings, addresses))
        running = replace(addresses, children=children.all)
        await _drivers_ready(control, names)
        children.are_ready = True
        stack.enter_context(told(running.addresses, settings.bus.data_dir, settings.ready_file))
        yield running


async def _register_shipped(control: Control, *, renew: bool) -> None:
    """The definitions and pipelines that ship. Those that are there stay as they are, unless they are to be renewed."""
    intake, view = control.services.intake, control.services.state.view
    for name in pipelines.definitions():
        if renew or await intake.definitions.find(name) is None:
            definition = ResourceDefinition.model_validate(pipelines.definition(name))
            await intake.definitions.write(definition, may_exist=True)
    for name in pipelines.pipelines():
        if not renew and view.resource("pipeline", name) is not None:
            continue
        document = pipelines.pipeline(name)
        spec = {key: value for key, value in document.items() if key != "name"}
        await intake.update(Draft(type="pipeline", name=name, spec=spec), create_missing=True)


def _driver_names(chosen: tuple[str, ...] | None) -> list[str]:
    installed = sorted(installed_drivers())
    if chosen is None:
        return installed
    unknown = sorted(set(chosen) - set(installed))
    if unknown:
        raise ConfigError(f"no driver named {', '.join(unknown)} is installed (installed: {', '.join(installed)})")
    return list(dict.fromkeys(chosen))


class _Children:
    """The drivers' processes. While they start for the first time, settings that cannot work end it all."""

    def __init__(self, names: list[str], environment: Mapping[str, str]) -> None:
        self.are_ready = False
        self.all = tuple(
            Child(name, [sys.executable, "-m", "conveyor_runtime", name], environment, partial(self._exited, name))
            for name in names
        )

    def _exited(self, name: str, code: int) -> None:
        if code == _EXIT_CONFIG and not self.are_ready:
            raise ConfigError(f"driver {name} cannot start with these settings; the lines above say why")


@asynccontextmanager
async def _children(names: list[str], settings: UpSettings, running: Running) -> AsyncIterator[_Children]:
    """Keep them running; supervision that fails ends the block with its exception."""
    children = _Children(names, _environment(settings, running))
    tasks = [asyncio.create_task(child.run(), name=f"driver {child.name}") for child in children.all]
    try:
        async with fail_together(*tasks):
            yield children
    finally:
        grace = settings.driver.drain_grace + settings.driver.kill_grace + 10.0
        await asyncio.gather(*(child.stop(grace) for child in children.all))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _environment(settings: UpSettings, running: Running) -> Mapping[str, str]:
    """How a child is told what to do: credentials never stand on a command line, where everybody could read them."""
    driver = settings.driver
    environment = {
        **{name: value for name, value in os.environ.items() if name != "CONVEYOR_METRICS"},  # one port for all of them
        "CONVEYOR_NATS_URL": running.nats_url,
        "CONVEYOR_API_URL": running.api_url,
        "CONVEYOR_TOKEN": running.token,
        "CONVEYOR_BACKEND": driver.backend,
        "CONVEYOR_CONCURRENCY": str(driver.concurrency),
        "CONVEYOR_ALLOW_FILE_REPOSITORIES": "true" if driver.allow_file_repositories else "false",
    }
    if driver.backends.native_root is not None:
        environment["CONVEYOR_NATIVE_ROOT"] = str(driver.backends.native_root)
    if settings.backend_file is not None:
        environment["CONVEYOR_BACKEND_FILE"] = str(settings.backend_file.absolute())
    return environment


async def _drivers_ready(control: Control, names: list[str]) -> None:
    """Until each driver has a living process."""
    view, changed = control.state.view, asyncio.Event()
    view.listen(lambda kind, parts: changed.set() if kind == "instance" else None)
    alive: set[str] = set()
    try:
        async with asyncio.timeout(_DRIVERS_READY):
            while missing := set(names) - alive:
                await changed.wait()
                changed.clear()
                is_dead = control.services.engine.liveness.is_dead
                alive = {it.record.driver for it in view.instances() if not is_dead(it.record.id)}
    except TimeoutError:
        raise ConfigError(
            f"these drivers did not start within {_DRIVERS_READY:.0f} s: {', '.join(sorted(missing))};"
            " the lines above say why"
        ) from None
