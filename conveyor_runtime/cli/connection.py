"""The way from a command to the API: which address, which token, one client for as long as the command lasts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import typer

if TYPE_CHECKING:
    from conveyor_runtime.client import Client

__all__ = ["DEFAULT_API_URL", "Globals", "ask", "globals_of"]

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

    given = globals_of(ctx)
    return Client(api_url or given.api_url or DEFAULT_API_URL, token=token or given.token)


def ask(ctx: typer.Context, api_url: str | None, token: str | None, question: Callable[[Client], Awaitable[T]]) -> T:
    """Run `question` with a client and close it."""
    import asyncio

    async def main() -> T:
        async with client_of(ctx, api_url, token) as client:
            return await question(client)

    return asyncio.run(main())
