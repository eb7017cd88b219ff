"""Settings in groups. They are filled by the command line (and its environment variables) in one place, `cli`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, ByteSize, ConfigDict, Field, TypeAdapter

from conveyor_runtime.models import Duration


def _bytes(size: Any) -> int:
    return TypeAdapter(ByteSize).validate_python(f"{size}B" if isinstance(size, str) and size.endswith("i") else size)


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


#: Bytes; written as a number or as 512Mi, 20G.
_Size = Annotated[int, BeforeValidator(_bytes), Field(ge=0)]
_STRICT = ConfigDict(extra="forbid", hide_input_in_errors=True)


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
class Credentials:
    """For one registry."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class ImageSettings:
    """How a backend that has images gets them and gets rid of them."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    credentials: Mapping[str, Credentials] = field(default_factory=dict)
    """By registry (`host` or `host:port`; the public one is `docker.io`), offered to that one alone. For others the
    docker command's configuration is looked at, likewise by registry."""

    pull_retries: Annotated[int, Field(ge=0)] = 2
    """How often a pull is tried again when the registry does not answer."""

    cache_bytes: _Size = 0
    """What images may take together before those not used for longest are removed; 0 = none are."""

    cache_exempt: tuple[str, ...] = ()
    """Images that are never removed."""

    removals_per_second: Annotated[float, Field(gt=0)] = 2.0


@dataclass(frozen=True)
class WarmSettings:
    """Sandboxes that are started before anybody asks for one. Each process of the driver that starts sandboxes has its
    own; each is handed out once."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    images: Mapping[str, Annotated[int, Field(ge=1)]] = field(default_factory=dict)
    """How many of each image stand ready from the start of the process to its end."""

    on_request: Annotated[int, Field(ge=0)] = 0
    """Of how many further images one stands ready, for `ttl` after a resource last asked for it with `warm: true`; of
    more, those asked for last."""

    ttl: Duration = 600.0
    """Seconds after which one that nobody took is replaced."""


@dataclass(frozen=True)
class BackendSettings:
    """What the operator tells the backends. Each takes what concerns it."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    native_root: Path | None = None
    """Directory of the native backend; None = `/var/tmp/conveyor-<uid>`. The same for all processes of a machine,
    because the steps of a run meet there."""

    host_paths: tuple[Annotated[Path, AfterValidator(_absolute)], ...] = ()
    """Paths of the backend's machine that tasks may mount, and all below them. None listed, none allowed."""

    networks: tuple[str, ...] = ()
    """Docker networks among which containers are spread that ask for none; there already, made by the operator; `host`
    is none of them. None listed = the engine's own bridge, which holds at most 1023."""

    images: ImageSettings = ImageSettings()

    warm: WarmSettings = WarmSettings()

    options: Mapping[str, str] = field(default_factory=dict)
    """What a third party's backend wants to know."""


@dataclass(frozen=True)
class DriverSettings:
    """One driver process."""

    concurrency: int = 4
    """How many runs one process works on at once."""

    backend: str = "auto"
    """auto, docker, native or qemu; auto = docker if its daemon answers, else native."""

    backends: BackendSettings = BackendSettings()
    """What the operator tells them."""

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
