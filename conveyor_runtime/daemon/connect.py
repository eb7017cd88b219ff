"""The connection of any process of ours to its bus."""

from __future__ import annotations

from conveyor_runtime.bus import Bus
from conveyor_runtime.bus.streams import ensure_streams, is_foreign_engine
from conveyor_runtime.errors import ConfigError


async def connect(url: str, *, name: str, patience: float = 10.0, replicas: int | None = None) -> Bus:
    """A control plane's connection, to a bus with our streams on it. Raises BusUnavailable, ConfigError, BusError."""
    bus = await Bus.connect(url, name=name, patience=patience)
    try:
        if await is_foreign_engine(bus):
            raise ConfigError(
                "this bus belongs to a Conveyor engine, whose streams leave no room for ours: drivers of ours serve it,"
                " a control plane needs a NATS server (or account) of its own"
            )
        await ensure_streams(bus, replicas=replicas)
    except BaseException:
        await bus.close()
        raise
    return bus


async def connect_driver(url: str, *, name: str, patience: float = 10.0) -> tuple[Bus, bool]:
    """A connection of a driver, and whether the bus is a Go Conveyor engine's, to be served by the plain contract.

    Any other has our streams then. Raises BusUnavailable, BusError.
    """
    bus = await Bus.connect(url, name=name, patience=patience)
    try:
        plain = await is_foreign_engine(bus)
        if not plain:
            await ensure_streams(bus)
    except BaseException:
        await bus.close()
        raise
    return bus, plain
