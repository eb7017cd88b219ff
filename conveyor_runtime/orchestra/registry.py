"""Which backends exist, and which of them this process can use."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Self, cast

from conveyor_runtime.config import BackendSettings
from conveyor_runtime.errors import BackendUnavailable, ConfigError, TerminalError
from conveyor_runtime.orchestra.base import Backend
from conveyor_runtime.orchestra.capabilities import KeepsWarm

__all__ = [
    "BUILT_IN",
    "ENTRY_POINTS",
    "BackendSettings",
    "Factory",
    "Orchestra",
    "Registry",
    "installed",
]

logger = logging.getLogger(__name__)

ENTRY_POINTS = "conveyor.backends"
"""Entry point group of third parties' backends: a name, and the `module:attribute` of its factory."""

_AUTO = ("docker", "native")


Factory = Callable[[BackendSettings], Awaitable[Backend]]
"""Opens a backend. Raises `BackendUnavailable` when it does not answer, `ConfigError` when its settings cannot work."""


class Registry:
    """Backends by name. The names given are all there are: the allow-list."""

    def __init__(self, entries: Iterable[tuple[str, Factory | str]]) -> None:
        """An entry is a name with a factory, or with the `module:attribute` where one is found when it is needed.

        Raises `ConfigError` for a name that comes twice.
        """
        self._factories: dict[str, Factory | str] = {}
        for name, factory in entries:
            if name in self._factories:
                raise ConfigError(f"backend {name!r} is registered twice; there are {', '.join(self.names)}")
            self._factories[name] = factory

    @property
    def names(self) -> list[str]:
        """All that can be asked for."""
        return sorted(self._factories)

    def only(self, names: Iterable[str]) -> Registry:
        """Those of the backends that are named. Raises `ConfigError` for an unknown or repeated name."""
        return Registry([(name, self._factory(name)) for name in names])

    async def open(self, name: str, settings: BackendSettings) -> Backend:
        """Raises `ConfigError` for an unknown name or one whose code cannot be loaded, and what the factory raises."""
        factory = self._factory(name)
        return await (_load(name, factory) if isinstance(factory, str) else factory)(settings)

    def _factory(self, name: str) -> Factory | str:
        if name not in self._factories:
            raise ConfigError(f"there is no backend {name!r}; there are {', '.join(self.names)}")
        return self._factories[name]


# By name and not imported on top: a process that only runs native work need not load the Docker client.
_ENTRIES: list[tuple[str, Factory | str]] = [
    (name, f"conveyor_runtime.orchestra.{name}:open_backend") for name in ("docker", "native", "qemu")
]
BUILT_IN = Registry(_ENTRIES)


def installed() -> Registry:
    """The built-in backends and those of third parties. Raises `ConfigError` if two have the same name."""
    return Registry([*_ENTRIES, *((found.name, found.value) for found in entry_points(group=ENTRY_POINTS))])


def _load(name: str, place: str) -> Factory:
    module, _, attribute = place.partition(":")
    try:
        return cast(Factory, getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"backend {name!r} cannot be loaded from {place}: {error}") from error


async def _close(backends: Iterable[Backend]) -> None:
    for backend in backends:
        await backend.close()


class Orchestra:
    """The backends one process can use."""

    def __init__(self, backends: Mapping[str, Backend], default: str, host: Backend) -> None:
        """`backends` serve tasks; `host` is the native one, among them or not."""
        self._backends = dict(backends)
        self._default = default
        self._host = host

    @classmethod
    async def open(
        cls, choice: str = "auto", settings: BackendSettings | None = None, *, registry: Registry | None = None
    ) -> Self:
        """Open the chosen backends: one name, several with commas (the first is the default), or `auto`: docker (when
        its daemon answers) and native.

        `registry` is all that is `installed`, unless given. Raises `ConfigError` for an unknown name and
        `BackendUnavailable` when one that was chosen does not answer.
        """
        settings = settings or BackendSettings()
        registry = registry or installed()
        names = [name.strip() for name in choice.split(",")]
        if choice != "auto":
            registry.only(names)  # says what is wrong before anything is opened
        host = await registry.open("native", settings)
        backends: dict[str, Backend] = {}
        for name in _AUTO if choice == "auto" else names:
            try:
                backends[name] = host if name == "native" else await registry.open(name, settings)
            except BaseException as error:
                if choice == "auto" and isinstance(error, BackendUnavailable):
                    logger.debug("no %s here: %s", name, error, extra={"action": "backend_absent"})
                    continue
                await _close({host, *backends.values()})
                raise
        return cls(backends, next(iter(backends)), host)

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

    def keep_warm(self, installation: str) -> None:
        """Have the backends keep sandboxes ready, as their settings say, until `close`."""
        for backend in self._serving():
            if isinstance(backend, KeepsWarm):
                backend.keep_warm(installation)

    async def close(self) -> None:
        """Release the connections. Containers go on."""
        await _close(self.backends)

    def _serving(self) -> list[Backend]:
        return sorted(self._backends.values(), key=lambda backend: backend.name != self._default)
