"""What may be asked of a backend: a task with everything it says about its container."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from conveyor_runtime.errors import TerminalError

__all__ = [
    "ExecTag",
    "HostMount",
    "Limits",
    "Mount",
    "Owner",
    "Port",
    "PullPolicy",
    "RestartPolicy",
    "Stdin",
    "Task",
    "Tmpfs",
    "Ulimit",
]

PullPolicy = Literal["if-not-present", "always", "never"]
"""`always` asks the registry each time, `never` takes only what is here."""

Stdin = bytes | AsyncIterable[bytes]
"""What a command may read, then end of file; of any size, read at most once. A command need not read it."""


@dataclass(frozen=True)
class Limits:
    """Ceilings of one container, all its processes together. 0 = unlimited. Memory is without swap."""

    cpu_milli: int = 0
    """Thousandths of one CPU: 1500 = one and a half."""
    memory_bytes: int = 0
    pids: int = 0
    """Processes and threads alive at once."""
    disk_bytes: int = 0
    """What the container may write beside its volumes."""

    def __post_init__(self) -> None:
        for name in ("cpu_milli", "memory_bytes", "pids", "disk_bytes"):
            if getattr(self, name) < 0:
                raise TerminalError(f"limit {name} must not be negative")


@dataclass(frozen=True)
class Ulimit:
    """A ceiling of every single process, by its name in ulimits (`nofile`, `memlock`, `core`, ...); -1 = unlimited."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True)
class Mount:
    """A volume of the namespace, made when first asked for. `path` is absolute or relative to the task's workdir;
    a task that uses relative ones only runs on every backend that has volumes."""

    volume: str
    path: str
    read_only: bool = False
    size_bytes: int = 0
    """Of the volume, if it is made now; 0 = the backend's default."""


@dataclass(frozen=True)
class HostMount:
    """A directory or file of the backend's machine, below one that the operator has listed."""

    source: str
    path: str
    read_only: bool = True


@dataclass(frozen=True)
class Tmpfs:
    """A file system in memory at an absolute path, empty at start. `size_bytes` 0 = the backend's default."""

    path: str
    size_bytes: int = 0


@dataclass(frozen=True)
class Port:
    """A port of the container reachable at `address` and `host` of the backend's machine; `host` 0 = a free one."""

    container: int
    host: int = 0
    protocol: Literal["tcp", "udp"] = "tcp"
    address: str = "127.0.0.1"


@dataclass(frozen=True)
class RestartPolicy:
    """What happens when the command ends by itself. A container that was stopped stays so, but for `always`, which
    starts it again with the backend's daemon."""

    name: Literal["no", "on-failure", "always", "unless-stopped"] = "no"
    max_retries: int = 0
    """For `on-failure` only; 0 = no end of them."""


@dataclass(frozen=True)
class Owner:
    """Who a container belongs to; carried by everything that is created, so that a janitor can judge it later."""

    installation: str
    run_id: str
    step: str
    attempt: int
    takeover: int
    resource: str = ""
    """`type/name/id` of the resource it belongs to, if it outlives the run that made it."""
    epoch: str = ""
    """The epoch of the store that had it made, if any is told: what never was a store's epoch is another store's."""


@dataclass(frozen=True)
class ExecTag:
    """Which attempt an exec works for. `(attempt, takeover)` orders the execs of one step."""

    run_id: str
    step: str
    attempt: int
    takeover: int


@dataclass(frozen=True)
class Task:
    """What to start. The same id in the same namespace is the same container."""

    id: str
    image: str = ""
    """Informational on `native`, which has no images."""
    command: tuple[str, ...] = ()
    """The argument list, in place of what the image would start; empty = just that. A sandbox has none."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the image's own. Nothing of the worker's environment gets in."""
    stdin: Stdin = b""
    """Taken by the call that starts the container; a sandbox has none, its execs do."""
    mounts: tuple[Mount, ...] = ()
    host_mounts: tuple[HostMount, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    limits: Limits = Limits()
    ulimits: tuple[Ulimit, ...] = ()
    user: str = ""
    """Name or uid, optionally `:group`; empty = the image's own."""
    workdir: str = "/workspace"
    """Absolute path inside, made if it is missing. The workspace volume of a sandbox is mounted here. `native` uses a
    directory of its own, which is private to the container."""
    privileged: bool = False
    network: str = "default"
    """`default` (the backend's own choice), `none`, `bridge`, `host`, or the name of a network the backend knows."""
    ports: tuple[Port, ...] = ()
    publish_all: bool = False
    """Publish every port the image declares as well, each at a free port."""
    restart: RestartPolicy = RestartPolicy()
    timeout: float | None = None
    """Seconds from its creation after which the container is stopped; not with a policy that never lets it end."""
    grace: float = 10.0
    """Seconds between SIGTERM and SIGKILL when the timeout stops it."""
    pull: PullPolicy = "if-not-present"
    warm: bool | None = None
    """Of a sandbox, where the backend keeps some ready: None takes one of the same image if there is one; True also
    asks to have one ready for the next task, as far as the operator allows; False has one made for this task."""
