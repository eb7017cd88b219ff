"""The connection of any process of ours to its bus, and to the state on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from conveyor_runtime.bus import Bus, Committer
from conveyor_runtime.bus.restoring import refuse_unrestored
from conveyor_runtime.bus.streams import STATE, ensure_streams, is_foreign_engine
from conveyor_runtime.errors import ConfigError
from conveyor_runtime.store import KvStore, State, View
from conveyor_runtime.telemetry import metrics


async def connect(url: str, *, name: str, patience: float = 10.0, replicas: int | None = None) -> Bus:
    """A control plane's connection, to a bus with our streams on it. Raises BusUnavailable, ConfigError, BusError."""
    bus = await Bus.connect(url, name=name, patience=patience)
    try:
        if await is_foreign_engine(bus):
            raise ConfigError(
                "this bus belongs to a Conveyor engine, whose streams leave no room for ours: drivers of ours serve it,"
                " a control plane needs a NATS server (or account) of its own"
            )
        await refuse_unrestored(bus)
        await ensure_streams(bus, replicas=replicas)
    except BaseException:
        await bus.close()
        raise
    return bus


async def connect_driver(url: str, *, name: str, patience: float = 10.0) -> tuple[Bus, bool]:
    """A connection of a driver, and whether the bus is a Go Conveyor engine's, to be served by the plain contract.

    Any other has our streams then. Raises BusUnavailable, ConfigError, BusError.
    """
    bus = await Bus.connect(url, name=name, patience=patience)
    try:
        plain = await is_foreign_engine(bus)
        if not plain:
            await refuse_unrestored(bus)
            await ensure_streams(bus)
    except BaseException:
        await bus.close()
        raise
    return bus, plain


@asynccontextmanager
async def state_on(bus: Bus) -> AsyncIterator[State]:
    """The state on our own bus, written through one committer; its view follows once it is started."""
    committer = Committer(bus, STATE)
    metrics.observe_committer(STATE, committer.stats)
    store = KvStore(bus, committer)
    try:
        yield State(store, View(store))
    finally:
        await committer.close()
