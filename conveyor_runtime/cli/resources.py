"""The commands about what is stored: `apply`, `get`, `describe`, `delete`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conveyor_runtime.cli import options
from conveyor_runtime.cli.connection import ask
from conveyor_runtime.cli.errors import CliError, ExitCode, explain, program, say
from conveyor_runtime.cli.noun import NOUNS, Noun, RunFilter, find_noun, title_of, unknown_type
from conveyor_runtime.cli.options import Format
from conveyor_runtime.cli.output import Column, emit
from conveyor_runtime.cli.targets import resources_named, split_target

if TYPE_CHECKING:
    from conveyor_runtime.cli.documents import Document
    from conveyor_runtime.client import Client, ClientError
    from conveyor_runtime.errors import Problem

__all__ = ["apply", "apply_document", "describe", "get"]

ORDER = {"definition": 0, "pipeline": 1, "resource": 2}

_APPLIED = (
    Column("OBJECT", lambda it: it["object"]),
    Column("OUTCOME", lambda it: it["outcome"]),
    Column("RUN", lambda it: it["run"] or "-"),
)


def apply(
    ctx: typer.Context,
    file: options.File,
    output: options.Output = Format.TABLE,
    api_url: options.ApiUrl = None,
    token: options.Token = None,
) -> None:
    """Make what is stored what a file says.

    It may hold several resources, pipelines and definitions; the last go first. What changes nothing makes no run.

    \b
    Example: conveyor apply -f ci-build.yaml
    """
    from conveyor_runtime.cli.documents import read_documents

    documents = read_documents(file)
    failed: list[CliError] = []

    async def question(client: Client) -> list[dict[str, Any]]:
        rows = []
        for document in sorted(documents, key=lambda it: ORDER[it.kind]):
            try:
                rows.append(await apply_document(client, document))
            except CliError as error:
                if error.code is ExitCode.UNREACHABLE:
                    raise
                failed.append(error)
        return rows

    rows = ask(ctx, api_url, token, question)
    if rows or output is not Format.TABLE:
        emit(rows, output, _APPLIED, lambda it: str(it["object"]))
    for error in failed:
        say(f"error: {error}")
        for line in error.lines:
            say(f"  {line}")
    if failed:
        raise typer.Exit(failed[0].code)


async def apply_document(client: Client, document: Document) -> dict[str, Any]:
    """Apply one document and say what became of it. Raises CliError with the places in the file."""
    from conveyor_runtime.client import ClientError

    try:
        if document.kind == "definition":
            await client.apply_definition(document.value)
            return {"object": document.title, "outcome": "applied", "run": ""}
        if document.kind == "pipeline":
            pipeline = await client.apply_pipeline(document.value)
            for warning in pipeline.warnings:
                say(f"warning: {document.title}: {warning}")
            return {"object": document.title, "outcome": f"applied (revision {pipeline.revision})", "run": ""}
        applied = await client.apply(document.value)
    except ClientError as error:
        if error.status == 422 and document.kind != "definition":
            unknown = await unknown_type(client, document.value.get("resource") or "")
            if unknown:
                raise CliError(document.locate("/resource"), document.title, unknown, code=ExitCode.USAGE) from error
        raise _located(error, document) from error
    outcome = "created" if applied.created else "updated" if applied.changed else "unchanged"
    return {"object": document.title, "outcome": outcome, "run": applied.run_id}


def _located(error: ClientError, document: Document) -> CliError:
    """The server's refusal, each of its problems at its place in the file."""
    told = explain(error)
    if told.code is ExitCode.UNREACHABLE:
        return told
    if not error.problems:
        return CliError(document.locate(""), document.title, str(told), code=told.code)
    lines = [f"{document.locate(it.pointer)}: {it.pointer or '/'}: {reason(it, document)}" for it in error.problems]
    return CliError(document.source, document.title, "the server will not take it", code=told.code, lines=lines)


def reason(problem: Problem, document: Document) -> str:
    """Why a value is refused; what a schema cannot say, said for those who write YAML."""
    value = document.find(problem.pointer)
    around = document.find(problem.pointer.rpartition("/")[0])
    if isinstance(value, dict) and isinstance(around, list) and 'not of type "string"' in problem.detail:
        return f"{problem.detail}; quote it: the colon made it a mapping"
    if problem.pointer.endswith("/timeout") and "anyOf" in problem.detail:
        return f"{value!r} is no timeout; give a duration such as 90s, 5m or a number of seconds"
    return problem.detail


def get(
    ctx: typer.Context,
    type_: Annotated[
        str,
        typer.Argument(metavar="TYPE", help=f"A resource type, or {NOUNS}."),
    ] = "",
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of them; of runs, the id.")] = "",
    status: Annotated[
        list[str] | None, typer.Option("--status", metavar="STATUS", help="Of runs: only in this state (repeatable).")
    ] = None,
    of_type: Annotated[str | None, typer.Option("--type", help="Of runs: only of resources of this type.")] = None,
    of_name: Annotated[str | None, typer.Option("--name", help="Of runs: only of resources of this name.")] = None,
    pipeline: Annotated[str | None, typer.Option("--pipeline", help="Of runs: only of this pipeline.")] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Of runs: the newest so many.")] = 50,
    output: options.Output = Format.TABLE,
    api_url: options.ApiUrl = None,
    token: options.Token = None,
) -> None:
    """List what there is, or print one of it.

    \b
    Examples: conveyor get runs --status Running
              conveyor get ci-build hello -o yaml
    """
    if not type_:
        raise typer.BadParameter(
            f"which TYPE? {NOUNS}, or a type of resources (`{program()} get definitions` lists them)"
        )
    word, name = split_target(type_, name)
    noun = find_noun(word)
    wanted = RunFilter(_statuses(status or []), of_type, of_name, pipeline, limit)

    async def question(client: Client) -> Any:
        async with _knowing(client, word):
            found = await noun.read(client, name) if name else await noun.list_all(client, wanted)
        if not found and (unknown := await _unknown(client, word)):
            raise CliError(unknown)
        return found

    found = ask(ctx, api_url, token, question)
    if not found and output is Format.TABLE:
        say(f"no {word} here")
        return
    emit(found, output, noun.columns, lambda row: _row_name(noun, row))


@asynccontextmanager
async def _knowing(client: Client, word: str) -> AsyncIterator[None]:
    """Say of what is not found whether there is such a type at all."""
    from conveyor_runtime.client import NotFoundError

    try:
        yield
    except NotFoundError:
        if unknown := await _unknown(client, word):
            raise CliError(unknown) from None
        raise


async def _unknown(client: Client, word: str) -> str:
    unknown = await unknown_type(client, word)
    if unknown and (meant := await resources_named(client, word)):
        return f"there is no type {word}; did you mean {meant}?"
    return f"{unknown}, besides {NOUNS}" if unknown else ""


def _row_name(noun: Noun, row: dict[str, Any]) -> str:
    if noun.title == "run":
        return f"run/{row['run_id']}"
    if noun.title in ("definition", "pipeline", "driver"):
        return f"{noun.title}/{row['name']}"
    return title_of(row)


def _statuses(given: list[str]) -> list[str]:
    if not given:
        return []
    from conveyor_runtime.models import Status

    known = {status.lower(): str(status) for status in Status}
    unknown = [status for status in given if status.lower() not in known]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]} is no status; there are {', '.join(known.values())}")
    return [known[status.lower()] for status in given]


def describe(
    ctx: typer.Context,
    type_: Annotated[
        str, typer.Argument(metavar="TYPE", help="A resource type, or run, definition, pipeline, driver.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name; of a run, the id.")] = "",
    output: options.Output = Format.TABLE,
    api_url: options.ApiUrl = None,
    token: options.Token = None,
) -> None:
    """Show all about one thing; of a resource, its runs too.

    \b
    Examples: conveyor describe ci-build hello
              conveyor describe run 0199a6c4-...
    """
    word, name = split_target(type_, name)
    if not name:
        raise typer.BadParameter(f"which {word}? give TYPE NAME or TYPE/NAME")
    noun = find_noun(word)

    async def question(client: Client) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        async with _knowing(client, word):
            row = await noun.read(client, name)
        if "active_run" not in row:
            return row, []
        runs = await find_noun("runs").list_all(client, RunFilter(type=row["resource"], name=row["name"], limit=10))
        return row, runs

    row, runs = ask(ctx, api_url, token, question)
    if output is not Format.TABLE:
        emit(row, output, noun.columns, lambda it: _row_name(noun, it))
        return
    from conveyor_runtime.cli.describe import print_description

    print_description(row, runs)
