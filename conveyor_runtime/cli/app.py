"""The command tree, and how a command ends."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from conveyor_runtime import __version__
from conveyor_runtime.cli import delete, demo, doctor, resources, runs, serving, workers
from conveyor_runtime.cli.connection import Globals
from conveyor_runtime.cli.errors import EXIT_CODES, ExitCode, debugging, explain, say

__all__ = ["app", "run"]


class _ReaderGone(Exception):
    """Whoever read our output has seen enough. Not an OSError: of those Typer makes an exit code of its own."""


class Commands(TyperGroup):
    """The built-in commands, then one per installed driver, made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order of the help."""
        return [*self.commands, *(name for name in workers.driver_names() if name not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        built_in = super().get_command(ctx, cmd_name)
        if built_in is not None or cmd_name not in workers.driver_names():
            return built_in
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name)(workers.driver_command(cmd_name))
        return typer.main.get_command(single)

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
            "--api-url", metavar="URL", envvar="CONVEYOR_API_URL", help="Where the API is (else http://127.0.0.1:8080)."
        ),
    ] = "",
    token: Annotated[
        str, typer.Option("--token", metavar="TOKEN", envvar="CONVEYOR_TOKEN", help="Token of the API.")
    ] = "",
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Conveyor Runtime: post resources and pipelines, have drivers work them, nothing lost.

    Begin with `conveyor demo`, or with `conveyor up` in one terminal and `conveyor run -f FILE --watch` in another.
    --api-url and --token may stand before or after the command. CONVEYOR_DEBUG=1 shows tracebacks.
    """
    ctx.obj = Globals(api_url, token)


def _version() -> None:
    """Print the version.

    \b
    Example: conveyor version
    """
    _print_version(True)


app.command("up")(serving.up)
app.command("serve")(serving.serve)
app.command("apply")(resources.apply)
app.command("run")(runs.run)
app.command("get")(resources.get)
app.command("describe")(resources.describe)
app.command("logs")(runs.logs)
app.command("cancel")(runs.cancel)
app.command("delete")(delete.delete)
app.add_typer(workers.driver_app, name="driver")
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.command("version")(_version)


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
