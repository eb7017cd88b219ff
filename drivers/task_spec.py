"""What a resource of type `task` may say."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from conveyor_runtime.models import Model
from conveyor_runtime.orchestra import HostMount, Mount, Port, RestartPolicy, Task
from drivers.spec import BuildLimits, Env, Seconds, Text, closed

__all__ = ["TaskSpec"]

_RESTART = r"^(no|always|unless-stopped|on-failure(:[1-9]\d{0,5})?)$"


class PortSpec(Model):
    """A port of the container and where it is published; `host` 0 = any free one."""

    model_config = ConfigDict(extra="forbid")

    container: int = Field(ge=1, le=65535)
    host: int = Field(default=0, ge=0, le=65535)
    protocol: Literal["tcp", "udp"] = "tcp"
    address: Text = "127.0.0.1"


class MountSpec(Model):
    """A volume of the task, at a path that is absolute or relative to the workdir."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    volume: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")
    path: Text = Field(min_length=1)
    read_only: bool = Field(default=False, alias="readOnly")


class HostMountSpec(Model):
    """A directory or file of the worker's machine, at or below a path that its operator has listed."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    source: Text = Field(pattern="^/")
    path: Text = Field(pattern="^/")
    read_only: bool = Field(default=True, alias="readOnly")


def parse_port(value: Any) -> Any:
    """`80` is short for `{container: 80}`."""
    return {"container": value} if isinstance(value, int) and not isinstance(value, bool) else value


_Port = Annotated[
    PortSpec,
    BeforeValidator(parse_port),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 65535},
                {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["container"],
                    "properties": {
                        "container": {"type": "integer", "minimum": 1, "maximum": 65535},
                        "host": {"type": "integer", "minimum": 0, "maximum": 65535},
                        "protocol": {"enum": ["tcp", "udp"]},
                        "address": {"type": "string"},
                    },
                },
            ]
        }
    ),
]


class TaskSpec(Model):
    """Run one command in a container, to its end or for as long as the resource is there.

    With `restart` no or on-failure it runs inside the run, which fails with it. With always or unless-stopped it is a
    service of the resource: an update replaces it, a resync repairs it, a delete removes it with its volumes.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra=closed)

    image: Text | None = Field(default=None, description="Image it runs in; native has none.")
    command: list[Text] = Field(default_factory=list, description="Argument list; empty = what the image starts.")
    env: Env = Field(default_factory=dict, description="Environment of the command.")
    workdir: Text = Field(default="/workspace", pattern="^/")
    user: Text = ""
    limits: BuildLimits = Field(default_factory=BuildLimits)
    ports: list[_Port] = Field(default_factory=list)
    mounts: list[MountSpec] = Field(default_factory=list)
    host_mounts: list[HostMountSpec] = Field(default_factory=list, alias="hostMounts")
    network: Text = "default"
    restart: str = Field(default="no", pattern=_RESTART, description="no, on-failure[:N], always or unless-stopped.")
    timeout: Seconds | None = Field(default=None, description="Seconds, or 90s, 5m, 1h30m; not for services.")
    backend: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_-]{0,62}$", description="docker, native, ...")
    pull: Literal["if-not-present", "always", "never"] = "if-not-present"

    @property
    def is_service(self) -> bool:
        """Whether it belongs to the resource and not to a run."""
        return self.restart in ("always", "unless-stopped")

    def as_task(self, task_id: str, grace: float) -> Task:
        """In the backends' words."""
        name, _, retries = self.restart.partition(":")
        return Task(
            id=task_id,
            image=self.image or "",
            command=tuple(self.command),
            env=self.env,
            workdir=self.workdir,
            user=self.user,
            limits=self.limits.as_limits(),
            ports=tuple(Port(port.container, port.host, port.protocol, port.address) for port in self.ports),
            mounts=tuple(Mount(mount.volume, mount.path, mount.read_only) for mount in self.mounts),
            host_mounts=tuple(HostMount(mount.source, mount.path, mount.read_only) for mount in self.host_mounts),
            network=self.network,
            restart=RestartPolicy(cast(Any, name), int(retries or 0)),
            timeout=self.timeout,
            grace=grace,
            pull=self.pull,
        )

    def fingerprint(self) -> str:
        """12 hexadecimal digits that change with the spec, and with nothing else: a field that a later version adds
        must not restart every service."""
        return hashlib.sha256(self.model_dump_json(exclude_defaults=True).encode()).hexdigest()[:12]
