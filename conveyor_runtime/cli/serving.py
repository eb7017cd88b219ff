"""The commands that stay: `up` and `serve`. They end on SIGTERM or Ctrl-C; the second one hurries them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conveyor_runtime.cli import options
from conveyor_runtime.cli.connection import globals_of
from conveyor_runtime.cli.errors import CliError, ExitCode, say

if TYPE_CHECKING:
    from conveyor_runtime.config import BackendSettings

__all__ = ["serve", "start_logging", "up"]


def up(
    ctx: typer.Context,
    data: options.DataDir = Path(".conveyor"),
    host: options.Host = "127.0.0.1",
    api_port: options.Port = 8080,
    nats_port: options.NatsPort = 0,
    nats_url: Annotated[
        str,
        typer.Option(
            "--nats-url", metavar="URL", envvar="CONVEYOR_NATS_URL", help="Use this NATS server; none is embedded then."
        ),
    ] = "",
    sync: options.Sync = "always",
    drivers: Annotated[
        str, typer.Option("--drivers", metavar="all|none|A,B", help="Which installed drivers to run.")
    ] = "all",
    backend: options.Backend = "auto",
    concurrency: options.Concurrency = 4,
    native_root: options.NativeRoot = None,
    backend_file: options.BackendFile = None,
    allow_file_repositories: options.AllowFiles = None,
    token: options.ServerToken = "",
    ready_file: options.ReadyFile = None,
    accept_loss: options.AcceptLoss = False,
    log_level: options.LogLevel = "info",
    log_format: options.LogFormat = "text",
) -> None:
    """Run everything here: bus, API, engine and drivers.

    It prints one line with the addresses once all of it is ready, and ends on Ctrl-C. State is kept in --data: start
    it again there and every run goes on. file:// repositories are allowed while only this machine can reach the API.

    \b
    Example: conveyor up --api-port 0 --drivers all --backend native
    """
    start_logging(log_level, log_format)
    from conveyor_runtime.cli.backend_file import backend_settings

    backends = backend_settings(backend_file, native_root)
    _check_backend(backend, backends, wanted=drivers != "none")
    from conveyor_runtime.config import ApiSettings, BusSettings, DriverSettings
    from conveyor_runtime.daemon.run import run_up
    from conveyor_runtime.daemon.up import UpSettings

    chosen = {"all": None, "none": ()}.get(drivers, options.listed(drivers))
    allow = options.is_loopback(host) if allow_file_repositories is None else allow_file_repositories
    token = token or globals_of(ctx).token
    _warn_if_open(host, token)
    settings = UpSettings(
        bus=BusSettings(url=nats_url, data_dir=data, host=host, port=nats_port, sync=sync, accept_loss=accept_loss),
        api=ApiSettings(host=host, port=api_port, token=token),
        driver=DriverSettings(
            concurrency=concurrency, backend=backend, backends=backends, allow_file_repositories=allow
        ),
        drivers=chosen,
        backend_file=backend_file,
        ready_file=ready_file,
    )
    with _naming_variable(ctx, nats_url):
        if nats_url and _from_environment(ctx):
            say("using the NATS server of CONVEYOR_NATS_URL; --data is not used for state")
        raise typer.Exit(run_up(settings))


def serve(
    ctx: typer.Context,
    nats_url: Annotated[
        str,
        typer.Option(
            "--nats-url", metavar="URL", envvar="CONVEYOR_NATS_URL", help="The NATS server; left out, one is embedded."
        ),
    ] = "",
    data: options.DataDir = Path(".conveyor"),
    host: options.Host = "127.0.0.1",
    api_port: options.Port = 8080,
    nats_port: options.NatsPort = 0,
    sync: options.Sync = "always",
    replicas: Annotated[
        int | None,
        typer.Option(
            "--replicas",
            envvar="CONVEYOR_REPLICAS",
            help="Copies of every stream in a NATS cluster: 1, 3 or 5; left out, they stay as they are (new: 1).",
        ),
    ] = None,
    token: options.ServerToken = "",
    ready_file: options.ReadyFile = None,
    accept_loss: options.AcceptLoss = False,
    log_level: options.LogLevel = "info",
    log_format: options.LogFormat = "text",
) -> None:
    """Run the API and the engine only.

    Drivers are processes of their own then. Several may serve one NATS server at once: there is no leader.

    \b
    Example: conveyor serve --nats-url nats://user:password@bus:4222 --host 0.0.0.0 --token SECRET
    """
    start_logging(log_level, log_format)
    from conveyor_runtime.config import ApiSettings, BusSettings
    from conveyor_runtime.daemon.run import run_up
    from conveyor_runtime.daemon.up import UpSettings

    token = token or globals_of(ctx).token
    _warn_if_open(host, token)
    bus = BusSettings(
        url=nats_url,
        data_dir=data,
        host=host,
        port=nats_port,
        sync=sync,
        replicas=replicas,
        accept_loss=accept_loss,
    )
    settings = UpSettings(
        bus=bus,
        api=ApiSettings(host=host, port=api_port, token=token),
        drivers=(),
        ready_file=ready_file,
        # An operator's own version of what ships is not written over by every process that starts.
        renew_shipped=False,
    )
    with _naming_variable(ctx, nats_url):
        raise typer.Exit(run_up(settings))


def start_logging(level: str, form: str) -> None:
    """Set up this process's own log, before anything that might write to it. Raises ConfigError."""
    import os
    from typing import cast

    from conveyor_runtime.telemetry.logs import LogFormat, setup_logging

    setup_logging(level, cast(LogFormat, form))
    # Child processes log as we do.
    os.environ.update(CONVEYOR_LOG_LEVEL=level, CONVEYOR_LOG_FORMAT=form)


def _from_environment(ctx: typer.Context) -> bool:
    """Whether the address of the bus is that of the variable, which may be exported for another command."""
    source = ctx.get_parameter_source("nats_url")
    return source is not None and source.name == "ENVIRONMENT"


@contextmanager
def _naming_variable(ctx: typer.Context, nats_url: str) -> Iterator[None]:
    """Say of a bus that does not answer where its address comes from, if nobody typed it."""
    from conveyor_runtime.errors import BusUnavailable, ConfigError

    try:
        yield
    except (BusUnavailable, ConfigError) as error:
        about_bus = isinstance(error, BusUnavailable) or "bus URL" in str(error)
        if not (nats_url and about_bus and _from_environment(ctx)):
            raise
        code = ExitCode.USAGE if isinstance(error, ConfigError) else ExitCode.UNREACHABLE
        raise CliError(
            str(error), "the address is that of CONVEYOR_NATS_URL; unset it and a server is embedded", code=code
        ) from error


def _check_backend(backend: str, settings: BackendSettings, *, wanted: bool) -> None:
    """Refuse at once what every driver process would only say again and again, once a minute."""
    from conveyor_runtime.orchestra.registry import installed

    names = ["auto"] if backend == "auto" else [name.strip() for name in backend.split(",")]
    known = ["auto", *installed().names]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"there is no backend {name!r}; there are {', '.join(known)}")
    if backend in ("auto", "native") or not wanted:
        return
    import asyncio

    from conveyor_runtime.errors import BackendUnavailable
    from conveyor_runtime.orchestra import Orchestra

    async def look() -> None:
        await (await Orchestra.open(backend, settings)).close()

    try:
        asyncio.run(look())
    except BackendUnavailable as error:
        raise CliError(
            f"--backend {backend}", str(error), "start its daemon, or use --backend auto", code=ExitCode.UNREACHABLE
        ) from error


def _warn_if_open(host: str, token: str) -> None:
    if not token and not options.is_loopback(host):
        say(f"warning: whoever reaches {host} can run commands here; ask for a token with --token or CONVEYOR_TOKEN")
