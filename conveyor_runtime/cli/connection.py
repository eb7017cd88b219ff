"""The way from a command to the API: which address, which token, one client for as long as the command lasts."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from conveyor_runtime.cli.errors import CliError, ExitCode, program, say

if TYPE_CHECKING:
    from conveyor_runtime.client import Client

__all__ = ["DEFAULT_API_URL", "Globals", "ask", "find_bus", "globals_of"]

DEFAULT_API_URL = "http://127.0.0.1:8080"

T = TypeVar("T")


@dataclass(frozen=True)
class Globals:
    """What was given in front of the command, or in the environment. Empty = nothing."""

    api_url: str = ""
    token: str = ""


def globals_of(ctx: typer.Context) -> Globals:
    """What was given in front of the command."""
    found = ctx.find_object(Globals)
    return found if found is not None else Globals()


def client_of(ctx: typer.Context, api_url: str | None, token: str | None) -> Client:
    """A client; what stands behind the command wins over what stands in front of it."""
    from conveyor_runtime.client import Client

    url, found = address_of(ctx, api_url)
    return Client(url, token=token or globals_of(ctx).token or found)


def address_of(ctx: typer.Context, api_url: str | None) -> tuple[str, str]:
    """Where the API is, and the token that was told with it: what was given, else what an `up` tells here."""
    if url := api_url or globals_of(ctx).api_url:
        return url, ""
    told = _told_here()
    return told.get("api") or DEFAULT_API_URL, told.get("token", "")


def _ready_file() -> Path:
    """Where an `up` or `serve` whose data lie here tells its addresses."""
    from conveyor_runtime.daemon.ready import READY_FILE

    return Path(os.environ.get("CONVEYOR_DATA") or ".conveyor") / READY_FILE


def _told_here() -> dict[str, str]:
    """The addresses told here; none if nobody does, or somebody else, whom we should not follow."""
    import json

    try:
        with _ready_file().open() as file:
            told = json.load(file) if os.fstat(file.fileno()).st_uid in (os.getuid(), 0) else {}
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in told.items() if isinstance(value, str)} if isinstance(told, dict) else {}


def ask(ctx: typer.Context, api_url: str | None, token: str | None, question: Callable[[Client], Awaitable[T]]) -> T:
    """Run `question` with a client and close it."""
    import asyncio

    async def main() -> T:
        async with client_of(ctx, api_url, token) as client:
            return await question(client)

    return asyncio.run(main())


def find_bus(given: str) -> str:
    """The URL of the bus for a driver: the one given, else that of the `up` or `serve` whose data lie here.

    Raises CliError when there is neither.
    """
    if given:
        return given
    import json

    from conveyor_runtime.security.redaction import redact_url

    path = _ready_file()
    try:
        with path.open() as file:
            # Whoever made it has this process run its work: somebody else's file is not for us.
            if os.fstat(file.fileno()).st_uid not in (os.getuid(), 0):
                raise CliError(str(path), "it belongs to another user; give --nats-url", code=ExitCode.USAGE)
            url = str(json.load(file)["nats"])
    except FileNotFoundError:
        raise CliError(
            "no bus is known",
            "give --nats-url, or set CONVEYOR_NATS_URL,"
            f" or run this in the folder where `{program()} up` runs (there is no {path} here)",
            code=ExitCode.USAGE,
        ) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CliError(
            str(path), f"no bus can be read from it ({error}); give --nats-url", code=ExitCode.USAGE
        ) from None
    say(f"using the bus of {path}: {redact_url(url)}")
    return url
