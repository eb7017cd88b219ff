"""Driver processes: `driver run`, the same as a subcommand for each installed driver, `driver list`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from conveyor_runtime.cli import options
from conveyor_runtime.cli.connection import find_bus, globals_of
from conveyor_runtime.cli.errors import CliError, ExitCode, debugging
from conveyor_runtime.cli.installed import installed, summary_of
from conveyor_runtime.cli.output import Column, emit

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from conveyor_runtime.reconcile import Driver

__all__ = ["driver_app", "driver_command"]

NatsUrl = Annotated[
    str,
    typer.Option(
        "--nats-url",
        metavar="URL",
        envvar="CONVEYOR_NATS_URL",
        help="The NATS server of the runtime; left out, that of ./.conveyor/ready.json, which `up` keeps.",
    ),
]
Resources = Annotated[
    str,
    typer.Option(
        "--resources",
        metavar="TYPE,...",
        envvar="CONVEYOR_RESOURCES",
        help="Types to serve in place of the driver's own.",
    ),
]
Defaults = Annotated[
    str,
    typer.Option(
        "--defaults",
        metavar="FILE",
        envvar="CONVEYOR_DEFAULTS",
        help="Per type, spec fields used where a resource leaves them out.",
    ),
]
DriverApiUrl = Annotated[
    str,
    typer.Option("--api-url", metavar="URL", help="The API that the driver's own client talks to (CONVEYOR_API_URL)."),
]
DriverToken = Annotated[str, typer.Option("--token", metavar="TOKEN", help="Token of that API (CONVEYOR_TOKEN).")]

_HELP = """{summary}

Any number of processes of it share the work, on any number of machines.

\b
Example: conveyor {name} --nats-url nats://user:password@bus:4222 --concurrency 8
"""

driver_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="Run a driver of your own, or list the installed ones.",
)


@driver_app.command("run")
def run(
    ctx: typer.Context,
    which: Annotated[
        str, typer.Argument(metavar="MODULE:ATTR", help="my_module:my_driver, file.py:my_driver or an installed name.")
    ],
    nats_url: NatsUrl = "",
    concurrency: options.Concurrency = 4,
    backend: options.Backend = "auto",
    resources: Resources = "",
    defaults: Defaults = "",
    allow_file_repositories: options.AllowFiles = False,
    native_root: options.NativeRoot = None,
    backend_file: options.BackendFile = None,
    api_url: DriverApiUrl = "",
    token: DriverToken = "",
    metrics: options.Metrics = "",
    log_level: options.LogLevel = "info",
    log_format: options.LogFormat = "text",
) -> None:
    """Run a driver of your own until Ctrl-C.

    \b
    Example: conveyor driver run deploy.py:driver --nats-url nats://user:password@bus:4222
    """
    from conveyor_runtime.cli.backend_file import backend_settings
    from conveyor_runtime.cli.serving import start_logging

    start_logging(log_level, log_format)
    from conveyor_runtime.config import DriverSettings
    from conveyor_runtime.daemon.worker import run_driver
    from conveyor_runtime.telemetry.metrics import served

    settings = DriverSettings(
        concurrency=concurrency,
        backend=backend,
        backends=backend_settings(backend_file, native_root),
        allow_file_repositories=bool(allow_file_repositories),
        resources=options.listed(resources),
        defaults=_defaults(defaults),
    )
    given, driver, bus = globals_of(ctx), _load(which), find_bus(nats_url)
    with served(metrics):
        code = run_driver(driver, bus, settings, api_url or given.api_url, token or given.token)
    raise typer.Exit(code)


def driver_command(name: str) -> TyperCommand:
    """`conveyor NAME`: `driver run` with its argument given."""
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name, help=_HELP.format(summary=summary_of(name), name=name))(run)
    command = typer.main.get_command(single)
    assert isinstance(command, TyperCommand)
    command.params = [parameter for parameter in command.params if parameter.name != "which"]
    assert command.callback is not None
    command.callback = partial(command.callback, which=name)
    return command


@driver_app.command("list")
def list_installed(output: options.Output = options.Format.TABLE) -> None:
    """List the installed drivers; `conveyor get drivers` shows the running ones.

    \b
    Example: conveyor driver list -o json
    """
    rows = [
        {"name": point.name, "object": point.value, "package": _package(point)}
        for point in sorted(installed(), key=lambda point: point.name)
    ]
    columns = [
        Column("NAME", lambda it: it["name"]),
        Column("OBJECT", lambda it: it["object"]),
        Column("PACKAGE", lambda it: it["package"]),
    ]
    emit(rows, output, columns, lambda it: str(it["name"]))


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else ""


def _load(name: str) -> Driver:
    from conveyor_runtime.errors import ConfigError
    from conveyor_runtime.reconcile import load_driver

    try:
        return load_driver(name)
    except ConfigError:
        raise
    except Exception as error:  # a user's module may fail in any way while it is imported
        if debugging():
            raise
        if isinstance(error, SyntaxError) and error.filename:
            place = f"{_from_here(error.filename)}:{error.lineno or 1}"
            raise CliError(place, type(error).__name__, error.msg, code=ExitCode.USAGE) from error
        where = ""
        trace = error.__traceback__
        while trace is not None:
            where, trace = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}", trace.tb_next
        reason = f"it cannot be imported: {type(error).__name__}: {error}"
        raise CliError(f"driver {name}", where, reason, "CONVEYOR_DEBUG=1 shows all", code=ExitCode.USAGE) from error


def _from_here(path: str) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _defaults(path: str) -> Mapping[str, Mapping[str, Any]]:
    if not path:
        return {}
    from conveyor_runtime.cli.documents import invalid, read_mapping

    document = read_mapping(path)
    for type_, fields in document.value.items():
        if not isinstance(fields, dict):
            raise invalid(document.locate(f"/{type_}"), f"the defaults of {type_} must be a mapping of spec fields")
    defaults: Mapping[str, Mapping[str, Any]] = document.value
    return defaults
