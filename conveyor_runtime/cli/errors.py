"""How a command ends: exit codes, and errors a person can act on."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conveyor_runtime.client import ClientError

__all__ = ["EXIT_CODES", "CliError", "ExitCode", "debugging", "exit_code_of", "explain", "program", "say"]


class ExitCode(IntEnum):
    """Exit codes, the same for every command."""

    SUCCESS = 0
    FAILED = 1
    USAGE = 2
    CANCELLED = 3
    TIMED_OUT = 4
    UNREACHABLE = 5
    INTERRUPTED = 130
    BROKEN_PIPE = 141


EXIT_CODES = (
    "Exit codes: 0 success; 1 failed (a run did, or the server refused); 2 usage (wrong options, an invalid document,"
    " a port or data directory that is taken);"
    " 3 the run was cancelled; 4 it timed out; 5 the server cannot be reached; 130 interrupted."
)


class CliError(Exception):
    """An error in words for the terminal: what, where, how to mend. Further lines are shown below the first."""

    def __init__(self, *parts: str, code: ExitCode = ExitCode.FAILED, lines: Sequence[str] = ()) -> None:
        super().__init__(": ".join(part for part in parts if part))
        self.code = code
        self.lines = tuple(lines)


def say(text: str) -> None:
    """Talk, on stderr: stdout is for data."""
    print(text, file=sys.stderr, flush=True)


def program() -> str:
    """How this program is called here: what a hint must print so that it can be copied."""
    import shutil

    called = sys.argv[0]
    if called.endswith("__main__.py"):
        return f"{sys.executable} -m conveyor_runtime"
    found = shutil.which("conveyor")
    # Another installation on the path is not the one that was called.
    on_path = found is not None and os.path.realpath(found) == os.path.realpath(called)
    return "conveyor" if on_path or not called.endswith("conveyor") else called


def debugging() -> bool:
    """Whether tracebacks are wanted: CONVEYOR_DEBUG=1."""
    return os.environ.get("CONVEYOR_DEBUG", "") not in ("", "0")


def exit_code_of(status: str) -> ExitCode:
    """The exit code that tells how a run ended."""
    by_status = {
        "Succeeded": ExitCode.SUCCESS,
        "Cancelled": ExitCode.CANCELLED,
        "TimedOut": ExitCode.TIMED_OUT,
    }
    return by_status.get(status, ExitCode.FAILED)


def explain(error: Exception) -> CliError:
    """Any exception as an error for people; those nobody expected say how to see more."""
    from conveyor_runtime.errors import ConfigError, ConveyorError, InfrastructureError

    if isinstance(error, CliError):
        return error
    if "conveyor_runtime.client" in sys.modules:
        from conveyor_runtime.client import ClientError

        if isinstance(error, ClientError):
            return _explain_refusal(error)
    if isinstance(error, ConfigError):
        return CliError(str(error), code=ExitCode.USAGE)
    if isinstance(error, InfrastructureError):
        return CliError(str(error), code=ExitCode.UNREACHABLE)
    if isinstance(error, ConveyorError):
        return CliError(str(error))
    if isinstance(error, OSError) and error.filename is not None:
        return CliError(str(error.filename), error.strerror or str(error), code=ExitCode.USAGE)
    kind = type(error).__name__
    return CliError(f"{kind}: {error}", "this should not happen", "CONVEYOR_DEBUG=1 shows where it came from")


def _explain_refusal(error: ClientError) -> CliError:
    from conveyor_runtime.client import InvalidRequestError, UnauthorizedError, UnavailableError, UnreachableError

    code = ExitCode.FAILED
    if isinstance(error, UnreachableError | UnavailableError):
        code = ExitCode.UNREACHABLE
    elif isinstance(error, InvalidRequestError | UnauthorizedError):
        code = ExitCode.USAGE
    hint = "give the server's token with --token or CONVEYOR_TOKEN" if isinstance(error, UnauthorizedError) else ""
    lines = [str(problem) for problem in error.problems if str(problem) not in str(error)]
    return CliError(str(error), hint, code=code, lines=lines)
