"""The command tree, and how a command ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from conveyor_runtime import __version__
from conveyor_runtime.cli.connection import Globals
from conveyor_runtime.cli.errors import EXIT_CODES, ExitCode, debugging, explain, say
from conveyor_runtime.cli.installed import driver_names, summary_of

__all__ = ["app", "run", "version"]


class _ReaderGone(Exception):
    """Whoever read our output has seen enough. Not an OSError: of those Typer makes an exit code of its own."""


#: The built-in commands in the order of the help: where each is made, and the first sentence of its own help. Said
#: here so that neither the help of all nor the use of one loads every other; a test compares the sentences.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "up": ("serving:up", "Run everything here: bus, API, engine and drivers."),
    "serve": ("serving:serve", "Run the API and the engine only."),
    "apply": ("resources:apply", "Make what is stored what a file says."),
    "run": ("runs:run", "Apply the resource of a file and have its run."),
    "get": ("resources:get", "List what there is, or print one of it."),
    "describe": ("resources:describe", "Show all about one thing; of a resource, its runs too."),
    "logs": ("runs:logs", "Print the log of a run."),
    "rerun": ("runs:rerun", "Run a run's resource once more, as it is now."),
    "cancel": ("runs:cancel", "Ask a run to end."),
    "delete": ("delete:delete", "Delete a resource, pipeline, definition or driver."),
    "dlq": ("dlq:dlq_app", "List, redrive and purge what nobody could work on."),
    "backup": ("backup:backup", "Write all that is stored to a file, while it is running."),
    "restore": ("backup:restore", "Restore a backup to an empty data directory."),
    "doctor": ("doctor:doctor", "Check what the runtime needs; say how to mend it."),
    "demo": ("demo:demo", "Build this project's own repository, start to end."),
    "version": ("app:version", "Print the version."),
    "image": ("image:image_app", "Make the guest image of the qemu backend."),
    "driver": ("workers:driver_app", "Run a driver of your own, or list the installed ones."),
}


class Commands(TyperGroup):
    """The built-in commands, then one per installed driver, each made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order of the help."""
        return [*COMMANDS, *(name for name in driver_names() if name not in COMMANDS)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            return _made(cmd_name, getattr(import_module(f"conveyor_runtime.cli.{module}"), attribute))
        if cmd_name not in driver_names():
            return None
        from conveyor_runtime.cli.workers import driver_command

        return driver_command(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list of commands in the help; none of them is made for that."""
        said = {name: sentence for name, (_, sentence) in COMMANDS.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, said.get(name) or summary_of(name)) for name in self.list_commands(ctx)])

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGone from error
        except typer.BadParameter as error:
            # How the library speaks of the check, not of what is wrong.
            error.message = error.message.removeprefix("Value error, ")
            raise


def _made(name: str, of: typer.Typer | Callable[..., None]) -> Any:
    if not isinstance(of, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name)(of)
        of = single
    return typer.main.get_command(of)


app = typer.Typer(
    name="conveyor",
    cls=Commands,
    no_args_is_help=True,
    # Plain help: loading rich would take longer than everything else together.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXIT_CODES,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"conveyor {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    api_url: Annotated[
        str,
        typer.Option(
            "--api-url",
            metavar="URL",
            envvar="CONVEYOR_API_URL",
            help="Where the API is (else that of an `up` in this folder, else http://127.0.0.1:8080).",
        ),
    ] = "",
    token: Annotated[
        str, typer.Option("--token", metavar="TOKEN", envvar="CONVEYOR_TOKEN", help="Token of the API.")
    ] = "",
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Conveyor Runtime: post resources and pipelines, have drivers work them, nothing lost.

    Begin with `conveyor demo`, or with `conveyor up` in one terminal and `conveyor run -f FILE --watch` in another.
    --api-url and --token may stand before or after the command. CONVEYOR_DEBUG=1 shows tracebacks.
    """
    ctx.obj = Globals(api_url, token)


def version() -> None:
    """Print the version.

    \b
    Example: conveyor version
    """
    _print_version(True)


def run() -> int:
    """Run the command that argv names; its exit code. Errors become lines on stderr."""
    try:
        code = _run_app()
        sys.stdout.flush()  # here, where a reader that is gone is no traceback
        return code
    except KeyboardInterrupt:
        say("interrupted")
        return ExitCode.INTERRUPTED
    except (BrokenPipeError, _ReaderGone):
        # Whoever read our output has seen enough; what is still buffered must not fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.BROKEN_PIPE
    except Exception as error:
        if debugging():
            raise
        told = explain(error)
        say(f"error: {told}")
        for line in told.lines:
            say(f"  {line}")
        return told.code


def _run_app() -> int:
    try:
        app()
    except SystemExit as end:
        return _code(end)
    return ExitCode.SUCCESS


def _code(end: SystemExit) -> int:
    if end.code is None:
        return ExitCode.SUCCESS
    return end.code if isinstance(end.code, int) else ExitCode.FAILED
