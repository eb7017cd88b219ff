"""The commands about dead letters: `dlq list`, `dlq show`, `dlq redrive`, `dlq purge`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from conveyor_runtime.cli import options
from conveyor_runtime.cli.connection import ask
from conveyor_runtime.cli.errors import ExitCode, say
from conveyor_runtime.cli.options import Format
from conveyor_runtime.cli.output import Column, age, emit, plain

if TYPE_CHECKING:
    from conveyor_runtime.client import Client

__all__ = ["dlq_app"]

dlq_app = typer.Typer(
    name="dlq",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="List, redrive and purge what nobody could work on.",
)

_COLUMNS = (
    Column("ID", lambda it: str(it["id"])),
    Column("KIND", lambda it: it["kind"]),
    Column("AGE", lambda it: age(it["time"]), spared=True),
    Column("RUN", lambda it: it["run_id"] or "-"),
    Column("STEP", lambda it: it["step"] or "-", spared=True),
    Column("SUBJECT", lambda it: it["subject"], spared=True),
    Column("REASON", lambda it: it["reason"]),
)

Id = Annotated[int, typer.Argument(metavar="ID", min=1, help="Which one, as `dlq list` tells.")]
Ids = Annotated[list[int], typer.Argument(metavar="ID...", min=1, help="Which ones, as `dlq list` tells.")]


def _name(row: dict[str, object]) -> str:
    return f"dead-letter/{row['id']}"


@dlq_app.command("list")
def list_all(
    ctx: typer.Context,
    output: options.Output = Format.TABLE,
    api_url: options.ApiUrl = None,
    token: options.Token = None,
) -> None:
    """List dead letters, oldest first.

    They are kept for 30 days.

    \b
    Example: conveyor dlq list -o json
    """

    async def question(client: Client) -> None:
        emit([plain(it) for it in await client.dead_letters()], output, _COLUMNS, _name)

    ask(ctx, api_url, token, question)


@dlq_app.command()
def show(
    ctx: typer.Context,
    letter: Id,
    output: options.Output = Format.YAML,
    api_url: options.ApiUrl = None,
    token: options.Token = None,
) -> None:
    """Print a dead letter with its message.

    \b
    Example: conveyor dlq show 12
    """

    async def question(client: Client) -> None:
        emit(plain(await client.dead_letter(letter)), output, _COLUMNS, _name)

    ask(ctx, api_url, token, question)


@dlq_app.command()
def redrive(ctx: typer.Context, letters: Ids, api_url: options.ApiUrl = None, token: options.Token = None) -> None:
    """Put dead letters back in play.

    Do it once what was in their way is mended.

    A dispatch gives its step another attempt if its run is still open; if that has ended, its resource is run once
    more, as it is now, unless it has had another run since. A result, or a message of another publisher, is sent again
    to where it came from. What is back in play is no dead letter any more.

    \b
    Example: conveyor dlq redrive 12 13
    """
    from conveyor_runtime.client import ConflictError, NotFoundError

    async def question(client: Client) -> ExitCode:
        code = ExitCode.SUCCESS
        for letter in letters:
            try:
                done = await client.redrive(letter)
            except (NotFoundError, ConflictError) as error:
                # One that stays where it is keeps none of the others.
                say(f"error: dead-letter/{letter}: {error}")
                code = ExitCode.FAILED
            else:
                print(f"dead-letter/{letter} {done.action}" + (f": run {done.run_id}" if done.run_id else ""))
        return code

    raise typer.Exit(ask(ctx, api_url, token, question))


@dlq_app.command()
def purge(
    ctx: typer.Context,
    letters: Annotated[list[int] | None, typer.Argument(metavar="[ID...]", min=1, help="Which ones.")] = None,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="DURATION", help="Those kept for longer, e.g. 90s, 5m, 24h.")
    ] = "",
    all_: Annotated[bool, typer.Option("--all", help="All there are.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    api_url: options.ApiUrl = None,
    token: options.Token = None,
) -> None:
    """Remove dead letters for good.

    \b
    Examples: conveyor dlq purge 12 13
              conveyor dlq purge --older-than 168h --yes
    """
    if [bool(letters), bool(older_than), all_].count(True) != 1:
        raise typer.BadParameter("give IDs, or --older-than, or --all")
    which = f"those older than {older_than}" if older_than else "all" if all_ else ", ".join(map(str, letters or ()))
    if not yes:
        typer.confirm(f"Remove dead letters for good: {which}?", abort=True)

    async def question(client: Client) -> ExitCode:
        if letters:
            return await _remove(client, letters)
        print(f"{await client.purge_dead_letters(older_than or None)} dead letters removed")
        return ExitCode.SUCCESS

    raise typer.Exit(ask(ctx, api_url, token, question))


async def _remove(client: Client, letters: list[int]) -> ExitCode:
    from conveyor_runtime.client import NotFoundError

    code = ExitCode.SUCCESS
    for letter in letters:
        try:
            await client.remove_dead_letter(letter)
        except NotFoundError as error:
            say(f"error: {error}")
            code = ExitCode.FAILED
        else:
            print(f"dead-letter/{letter} removed")
    return code
