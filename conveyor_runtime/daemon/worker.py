"""One driver process: its connection, its backends, its manager."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import uvloop

import pipelines
from conveyor_runtime.bus import Bus, Committer
from conveyor_runtime.bus.address import parse_url
from conveyor_runtime.bus.streams import LOGS, RESULTS, STATE
from conveyor_runtime.config import DriverSettings
from conveyor_runtime.daemon.connect import connect_driver
from conveyor_runtime.kit.notify import Notifier
from conveyor_runtime.kit.shutdown import on_signals
from conveyor_runtime.orchestra import Orchestra
from conveyor_runtime.reconcile import Driver, DriverManager
from conveyor_runtime.reconcile import plain as plain_contract
from conveyor_runtime.reconcile.lease import BUS_ADDRESS
from conveyor_runtime.reconcile.manager import ManagerDeps
from conveyor_runtime.reconcile.plain import PlainCommitter, PlainLogs
from conveyor_runtime.store import KvStore, MemoryStore, State
from conveyor_runtime.telemetry import metrics

if TYPE_CHECKING:
    from conveyor_runtime.client import Client

log = logging.getLogger(__name__)

#: Exit code of a process that ended because user code could not be stopped in any other way.
EXIT_STUCK = 70


def run_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run a process's main coroutine to its end; the exit code."""
    # Thousands of short-lived records a second make the collector look in vain every few events: a quarter of the CPU
    # of a no-op event (measured: 205-254 us with Python's own thresholds, 152-178 us with these).
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def run_driver(driver: Driver, nats_url: str, settings: DriverSettings, api_url: str = "", token: str = "") -> int:
    """Run one driver until a signal; the exit code. Raises ConfigError, BusUnavailable."""
    BUS_ADDRESS.set(", ".join(parse_url(nats_url)[0]))
    return run_loop(work(driver, nats_url, settings, api_url, token))


async def work(driver: Driver, nats_url: str, settings: DriverSettings, api_url: str, token: str) -> int:
    """Run the driver until a signal; the process's exit code."""
    notifier = Notifier()
    async with notifier.alive(), connected_manager(driver, nats_url, settings, api_url, token) as manager:

        def drain() -> None:
            notifier.stopping()
            manager.drain()

        async def say_ready() -> None:
            await manager.ready.wait()
            notifier.ready()

        telling = asyncio.create_task(say_ready())
        try:
            with on_signals(drain):
                await manager.run()
        finally:
            telling.cancel()
            if manager.stuck:
                # User code does not end, and an orderly exit would wait for it.
                log.error("%s has user code that does not end; this process ends it by ending itself", driver.name)
                logging.shutdown()
                os._exit(EXIT_STUCK)
    return 0


@asynccontextmanager
async def connected_manager(
    driver: Driver, nats_url: str, settings: DriverSettings, api_url: str = "", token: str = ""
) -> AsyncIterator[DriverManager]:
    """A driver's manager with all it works with, for as long as the block lasts. Raises ConfigError, BusError."""
    if settings.resources:
        driver = replace(driver, resources=settings.resources)
    settings = replace(settings, defaults=_merge(pipelines.defaults(), settings.defaults))
    async with AsyncExitStack() as stack:
        bus, plain = await connect_driver(nats_url, name=f"conveyor-{driver.name}", patience=30.0)
        stack.push_async_callback(bus.close)
        client = _client(api_url, token, stack) if api_url else None
        orchestra = await Orchestra.open(settings.backend, settings.backends) if driver.sandbox else None
        if orchestra is not None:
            stack.push_async_callback(orchestra.close)
        committers = _committers(bus, plain)
        metrics.BUS_CONNECTED.set_function(lambda: float(bus.connected))
        for stream, committer in zip((RESULTS, LOGS, STATE), committers, strict=False):
            stack.push_async_callback(committer.close)
            metrics.observe_committer(stream, committer.stats)
        state = State(MemoryStore() if plain else KvStore(bus, committers[2]))
        # What is started for a bus that is not ours carries no installation, so no janitor touches it.
        meta = await state.ensure_meta()
        installation, epoch = ("", "") if plain else (meta.installation, meta.epoch)
        if orchestra is not None and driver.keeps_warm and installation:
            orchestra.keep_warm(installation)
        yield DriverManager(
            driver,
            settings,
            ManagerDeps(
                bus=bus,
                state=state,
                results=committers[0],
                logs=committers[1],
                installation=installation,
                epoch=epoch,
                orchestra=orchestra,
                client=client,
                plain=plain,
            ),
        )


def _client(api_url: str, token: str, stack: AsyncExitStack) -> Callable[[], Client]:
    """Gives the driver's client, made when user code first asks for it: most never does, and it is a fifth of what a
    start takes."""

    @cache
    def client() -> Client:
        from conveyor_runtime.client import Client

        made = Client(api_url, token=token)
        stack.push_async_callback(made.aclose)
        return made

    return client


def _committers(bus: Bus, plain: bool) -> list[Committer]:
    """Of results, of logs, and on our own bus of state."""
    if plain:
        log.warning("this bus belongs to a Conveyor engine: serving it by its plain contract, each event at least once")
        return [PlainCommitter(bus, plain_contract.RESULTS), PlainLogs(bus, plain_contract.LOGS)]
    return [Committer(bus, stream) for stream in (RESULTS, LOGS, STATE)]


def _merge(shipped: Mapping[str, Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {type_: {**shipped.get(type_, {}), **own.get(type_, {})} for type_ in {*shipped, *own}}
