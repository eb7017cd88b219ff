"""Settings in groups. They are filled by the command line (and its environment variables) in one place, `cli`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class BusSettings:
    """How to reach NATS."""

    url: str = ""
    """nats://[user:password@]host:port; empty = run the embedded server."""

    data_dir: Path = Path(".conveyor")
    """Where the embedded server keeps its state."""

    host: str = "127.0.0.1"
    """Address the embedded server listens on."""

    port: int = 0
    """Port of the embedded server; 0 = a free one."""

    sync: str = "always"
    """When the embedded server syncs writes to disk: `always` (nothing acknowledged can be lost to a power cut) or an
    interval such as `2m` (faster; a power cut loses up to that much)."""

    accept_loss: bool = False
    """Serve a store of which something acknowledged is missing, as it is."""

    replicas: int | None = None
    """Copies of every stream, for clusters: 1, 3 or 5. None leaves those of a stream as they are, and makes a new one
    with one."""


@dataclass(frozen=True)
class ApiSettings:
    """The HTTP control plane."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0 = a free port."""

    token: str = ""
    """Bearer token every request must carry; empty = none is asked for."""


@dataclass(frozen=True)
class DriverSettings:
    """One driver process."""

    concurrency: int = 4
    """How many runs one process works on at once."""

    backend: str = "auto"
    """auto, docker, native or qemu; auto = docker if its daemon answers, else native."""

    native_root: Path | None = None
    """Where the native backend keeps its sandboxes; None = /var/tmp/conveyor-<uid>. The same for all processes of a
    machine, because the steps of a run meet there."""

    allow_file_repositories: bool = False
    """Whether file:// and local paths may be cloned. Only where every author of resources may read this machine."""

    resources: tuple[str, ...] = ()
    """Types to serve in place of the driver's own."""

    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Spec fields used where a resource leaves them out, per type."""

    drain_grace: float = 30.0
    """Seconds that running work gets to finish after SIGTERM."""

    kill_grace: float = 10.0
    """Seconds between asking work to stop and ending it."""
