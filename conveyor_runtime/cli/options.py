"""Parameters that several commands have, spelled once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AcceptLoss",
    "AllowFiles",
    "ApiUrl",
    "Backend",
    "BackendFile",
    "Concurrency",
    "DataDir",
    "File",
    "Format",
    "Host",
    "LogFormat",
    "LogLevel",
    "Metrics",
    "NativeRoot",
    "NatsPort",
    "Output",
    "Port",
    "ReadyFile",
    "ServerToken",
    "Sync",
    "Token",
    "is_loopback",
    "listed",
]


class Format(StrEnum):
    """How data is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


# -- of commands that ask the API --------------------------------------------------------------------------------

ApiUrl = Annotated[
    str | None,
    typer.Option(
        "--api-url",
        metavar="URL",
        help="Where the API is (CONVEYOR_API_URL, else that of an `up` in this folder, else http://127.0.0.1:8080).",
    ),
]
Token = Annotated[str | None, typer.Option("--token", metavar="TOKEN", help="Token of the API (CONVEYOR_TOKEN).")]
Output = Annotated[Format, typer.Option("--output", "-o", help="How to print it.")]
File = Annotated[str, typer.Option("--file", "-f", metavar="FILE", help="YAML or JSON; - is stdin.")]

# -- of commands that serve --------------------------------------------------------------------------------------

DataDir = Annotated[
    Path,
    typer.Option(
        "--data", metavar="DIR", envvar="CONVEYOR_DATA", help="Where the embedded nats-server keeps its data."
    ),
]
Host = Annotated[str, typer.Option("--host", envvar="CONVEYOR_HOST", help="Address to listen on.")]
Port = Annotated[
    int,
    typer.Option(
        "--api-port",
        metavar="PORT",
        envvar="CONVEYOR_API_PORT",
        min=0,
        max=65535,
        help="Port of the API; 0 = a free one.",
    ),
]
NatsPort = Annotated[
    int,
    typer.Option(
        "--nats-port",
        metavar="PORT",
        envvar="CONVEYOR_NATS_PORT",
        min=0,
        max=65535,
        help="Port of the embedded nats-server; 0 = a free one.",
    ),
]
Sync = Annotated[
    str,
    typer.Option(
        "--sync",
        metavar="always|DURATION",
        envvar="CONVEYOR_SYNC",
        help="When the embedded server syncs to disk: always, or e.g. 2m (faster; a power cut may lose that much).",
    ),
]
AcceptLoss = Annotated[
    bool,
    typer.Option("--accept-loss", help="Serve a damaged store as it is; what is missing of it is gone then."),
]
ReadyFile = Annotated[
    Path | None,
    typer.Option("--ready-file", metavar="PATH", help="Write the addresses there as JSON once ready (mode 0600)."),
]
ServerToken = Annotated[
    str,
    typer.Option("--token", metavar="TOKEN", envvar="CONVEYOR_TOKEN", help="Token every request must carry."),
]

# -- of commands that work ---------------------------------------------------------------------------------------

Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="auto|docker|native|qemu",
        envvar="CONVEYOR_BACKEND",
        help="Where containers run; auto = docker if its engine answers, else native (no isolation).",
    ),
]
Concurrency = Annotated[
    int,
    typer.Option(
        "--concurrency",
        metavar="N",
        envvar="CONVEYOR_CONCURRENCY",
        min=1,
        max=1000,
        help="Runs one driver works on at once.",
    ),
]
AllowFiles = Annotated[
    bool | None,
    typer.Option(
        "--allow-file-repositories/--no-allow-file-repositories",
        envvar="CONVEYOR_ALLOW_FILE_REPOSITORIES",
        help="Whether file:// repositories may be cloned: every author of resources could then read this machine.",
    ),
]
NativeRoot = Annotated[
    Path | None,
    typer.Option(
        "--native-root",
        metavar="DIR",
        envvar="CONVEYOR_NATIVE_ROOT",
        help="Where the native backend keeps its sandboxes.",
    ),
]
BackendFile = Annotated[
    Path | None,
    typer.Option(
        "--backend-file",
        metavar="FILE",
        envvar="CONVEYOR_BACKEND_FILE",
        help="What the backends may do and keep: host_paths, networks, images (credentials, cache_bytes), warm.",
    ),
]
Metrics = Annotated[
    str,
    typer.Option(
        "--metrics",
        metavar="[HOST:]PORT",
        envvar="CONVEYOR_METRICS",
        help="Answer GET /metrics there for Prometheus; without a host, on 127.0.0.1.",
    ),
]
LogLevel = Annotated[
    str,
    typer.Option("--log-level", metavar="LEVEL", envvar="CONVEYOR_LOG_LEVEL", help="debug, info, warning or error."),
]
LogFormat = Annotated[
    str,
    typer.Option(
        "--log-format", metavar="text|json", envvar="CONVEYOR_LOG_FORMAT", help="How this process logs, on stderr."
    ),
]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    from ipaddress import ip_address

    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listed(text: str) -> tuple[str, ...]:
    """The parts of `a,b,c`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
