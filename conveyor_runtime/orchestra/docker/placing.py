"""On which of the engine's networks a container goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace

from conveyor_runtime.errors import ConfigError, Gone, TerminalError
from conveyor_runtime.orchestra.docker.client import Engine
from conveyor_runtime.orchestra.networks import Networks
from conveyor_runtime.orchestra.task import Task

__all__ = ["Placing"]


class Placing:
    """Spreads what asks for no network of its own over those the operator has listed."""

    def __init__(self, engine: Engine, names: Iterable[str]) -> None:
        """Raises `ConfigError` for a name that comes twice."""
        self._engine = engine
        listed = tuple(names)
        self._networks = Networks(listed) if listed else None

    async def check_listed(self) -> None:
        """Raises `ConfigError` for a listed network that the engine does not have, and for the machine's own."""
        for name in self._networks.names if self._networks else ():
            driver = await self._driver(name)
            if driver is None:
                raise ConfigError(f"docker has no network {name!r}: make it (docker network create), or do not list it")
            if driver == "host":
                raise ConfigError(f"docker's network {name!r} is the machine's own, where no container goes")

    async def check(self, task: Task) -> None:
        """Raises `TerminalError` for a network that the engine does not have, and for ports that no network can
        publish."""
        if (task.ports or task.publish_all) and task.network == "none":
            raise TerminalError("no port can be published with network none")
        if task.network in ("default", "none", "bridge"):
            return
        driver = await self._driver(task.network)
        if driver is None:
            raise TerminalError(f"docker has no network {task.network!r}")
        if driver == "host":  # by its id
            raise TerminalError("no container goes on the machine's own network")

    @asynccontextmanager
    async def place(self, task: Task) -> AsyncIterator[Task]:
        """The task with its network settled; start it within the block."""
        if self._networks is None or task.network != "default":
            yield task
            return
        with self._networks.use(await self._count(self._networks.names)) as name:
            yield replace(task, network=name)

    async def _count(self, names: tuple[str, ...]) -> Counter[str]:
        found = await self._engine.call(self._engine.api.containers, filters={"network": list(names)})
        return Counter(name for container in found for name in container["NetworkSettings"]["Networks"])

    async def _driver(self, name: str) -> str | None:
        """What makes that network; None if there is none."""
        if "/" in name:  # it would be a path to something else of the engine's
            return None
        try:
            return str((await self._engine.call(self._engine.api.inspect_network, name))["Driver"])
        except Gone:
            return None
