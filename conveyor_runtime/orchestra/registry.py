"""Which backends exist, and which of them this process can use."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from conveyor_runtime.errors import BackendUnavailable, ConfigError, TerminalError
from conveyor_runtime.orchestra.base import Backend

__all__ = ["BUILT_IN", "BackendSettings", "Factory", "Orchestra", "Registry"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackendSettings:
    """What a backend may be told. A backend takes what concerns it."""

    native_root: Path | None = None
    """Directory of the native backend; None = `/var/tmp/conveyor-<uid>`."""


Factory = Callable[[BackendSettings], Awaitable[Backend]]
"""Opens a backend. Raises `BackendUnavailable` when it does not answer, `ConfigError` when its settings cannot work."""


class Registry:
    """Backends by name. The names given are all there are: the allow-list."""

    def __init__(self, entries: Iterable[tuple[str, Factory]]) -> None:
        """Raises `ConfigError` for a name that comes twice."""
        self._factories: dict[str, Factory] = {}
        for name, factory in entries:
            if name in self._factories:
                raise ConfigError(f"backend {name!r} is registered twice; there are {self.names}")
            self._factories[name] = factory

    @property
    def names(self) -> list[str]:
        """All that can be asked for."""
        return sorted(self._factories)

    async def open(self, name: str, settings: BackendSettings) -> Backend:
        """Raises `ConfigError` for an unknown name, and what the factory raises."""
        factory = self._factories.get(name)
        if factory is None:
            raise ConfigError(f"there is no backend {name!r}; there are {', '.join(self.names)}")
        return await factory(settings)


async def _docker(_: BackendSettings) -> Backend:
    # Here and not on top: a process that only runs native work need not load the Docker client.
    from conveyor_runtime.orchestra.docker import DockerBackend

    return await DockerBackend.open()


async def _native(settings: BackendSettings) -> Backend:
    from conveyor_runtime.orchestra.native import NativeBackend

    return NativeBackend(settings.native_root)


BUILT_IN = Registry([("docker", _docker), ("native", _native)])


class Orchestra:
    """The backends one process can use."""

    def __init__(self, backends: Mapping[str, Backend], default: str, host: Backend) -> None:
        """`backends` serve tasks; `host` is the native one, among them or not."""
        self._backends = dict(backends)
        self._default = default
        self._host = host

    @classmethod
    async def open(
        cls, choice: str = "auto", *, native_root: Path | None = None, registry: Registry = BUILT_IN
    ) -> Self:
        """Open the chosen backend, or with `auto` docker (when its daemon answers) and native.

        With `auto` the default is docker where there is one. Raises `ConfigError` for an unknown name and
        `BackendUnavailable` when the one chosen does not answer.
        """
        settings = BackendSettings(native_root=native_root)
        host = await registry.open("native", settings)
        if choice == "native":
            return cls({"native": host}, "native", host)
        if choice != "auto":
            return cls({choice: await registry.open(choice, settings)}, choice, host)
        backends = {"native": host}
        try:
            backends["docker"] = await registry.open("docker", settings)
        except BackendUnavailable as error:
            logger.debug("no docker here, native only: %s", error, extra={"action": "backend_absent"})
        return cls(backends, "docker" if "docker" in backends else "native", host)

    @property
    def host(self) -> Backend:
        """The native backend, for what a driver itself must run on this machine (git, for one). Always there, and in
        `backends` for the janitor, but it serves tasks only where it was chosen."""
        return self._host

    @property
    def default(self) -> Backend:
        """The one for work that does not say where."""
        return self._backends[self._default]

    @property
    def backends(self) -> list[Backend]:
        """Every place where this process may have left something: what the janitor has to look after."""
        served = list(self._serving())
        return served if self._host in served else [*served, self._host]

    @property
    def nodes(self) -> list[str]:
        """The places whose tasks this process serves, the default's first."""
        return [backend.node for backend in self._serving()]

    def pick(self, name: str | None = None) -> Backend:
        """The backend of that name, or the default. Raises `TerminalError` if this process has none such."""
        if not name:
            return self.default
        backend = self._backends.get(name)
        if backend is None:
            served = ", ".join(sorted(self._backends))
            raise TerminalError(f"backend {name!r} is not served here (only {served}); is its daemon running?")
        return backend

    def by_node(self, node: str) -> Backend:
        """The backend that is that place. Raises `TerminalError` if this process does not serve it."""
        for backend in self._serving():
            if backend.node == node:
                return backend
        raise TerminalError(f"node {node!r} is not served here (only {', '.join(self.nodes)})")

    async def close(self) -> None:
        """Release the connections. Containers go on."""
        for backend in self.backends:
            await backend.close()

    def _serving(self) -> list[Backend]:
        return sorted(self._backends.values(), key=lambda backend: backend.name != self._default)
