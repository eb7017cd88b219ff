"""The command `delete`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from conveyor_runtime.cli import options
from conveyor_runtime.cli.connection import ask
from conveyor_runtime.cli.errors import ExitCode, exit_code_of, program, say
from conveyor_runtime.cli.noun import Noun, find_noun
from conveyor_runtime.cli.targets import split_target

if TYPE_CHECKING:
    from conveyor_runtime.client import Client

__all__ = ["delete"]

#: Users before what they use: a definition may name a pipeline.
_ORDER = ("resource", "definition", "pipeline")


def delete(
    ctx: typer.Context,
    type_: Annotated[str, typer.Argument(metavar="TYPE", help="A resource type, pipeline, definition or driver.")] = "",
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which one.")] = "",
    file: Annotated[
        str, typer.Option("--file", "-f", metavar="FILE", help="Delete what this file names; - is stdin.")
    ] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Return once it is gone.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Ask no driver to clean up, and cancel a delete under way.")
    ] = False,
    api_url: options.ApiUrl = None,
    token: options.Token = None,
) -> None:
    """Delete a resource, pipeline, definition or driver.

    The run of a deleted resource is cancelled, its `finally` steps run, then the drivers that asked for it clean up.
    A driver that registered once gets a step of every resource of its type, until it is forgotten with this command.
    A delete waits for a driver that does not run; --force does without it, and what it would have removed stays.
    A definition or pipeline that is in use is not deleted; one that ships comes back when `up` or `serve` starts.

    \b
    Examples: conveyor delete ci-build hello --wait
              conveyor delete ci-build hello --force
              conveyor delete driver greeter
              conveyor delete -f ci-build.yaml
    """
    from conveyor_runtime.client import ConflictError, NotFoundError

    targets = _targets(type_, name, file)
    if force and (rigid := [noun.title for noun, _ in targets if noun.delete_by_force is None]):
        raise typer.BadParameter(f"no driver cleans up after a {rigid[0]}", param_hint="--force")

    async def question(client: Client) -> ExitCode:
        code = ExitCode.SUCCESS
        for noun, target in targets:
            try:
                code = max(code, await _delete(client, noun, target, wait=wait, force=force))
            except (NotFoundError, ConflictError) as error:
                # One that cannot be deleted keeps none of the others.
                say(f"error: {noun.title}/{target}: {error}")
                code = max(code, ExitCode.FAILED)
        return code

    raise typer.Exit(ask(ctx, api_url, token, question))


def _targets(type_: str, name: str, file: str) -> list[tuple[Noun, str]]:
    if bool(file) == bool(type_):
        raise typer.BadParameter("give either TYPE NAME or -f FILE")
    if file:
        from conveyor_runtime.cli.documents import read_documents

        documents = sorted(read_documents(file), key=lambda it: _ORDER.index(it.kind))
        return [
            (find_noun(it.value["resource"] if it.kind == "resource" else it.kind), str(it.value["name"]))
            for it in documents
        ]
    word, name = split_target(type_, name)
    if not name:
        raise typer.BadParameter(f"which {word}? give TYPE NAME or TYPE/NAME")
    noun = find_noun(word)
    if noun.delete is None or not noun.title:
        raise typer.BadParameter(
            f"a {noun.title or word} cannot be deleted" + ("; cancel it" if noun.title == "run" else "")
        )
    return [(noun, name)]


async def _delete(client: Client, noun: Noun, name: str, *, wait: bool, force: bool) -> ExitCode:
    import asyncio
    import contextlib

    from conveyor_runtime.cli.watch import wait as wait_for
    from conveyor_runtime.client import NotFoundError

    delete = noun.delete_by_force if force else noun.delete
    assert delete is not None
    title = f"{noun.title}/{name}"
    deleted = await delete(client, name)
    if deleted.gone:
        print(f"{title} deleted")
        _say_if_shipped(noun.title, name)
        return ExitCode.SUCCESS
    if not wait:
        print(f"{title} is being deleted, in run {deleted.run_id}")
    if not force and (absent := await _absent_drivers(client, deleted.run_id)):
        say(f"note: it waits for {absent}, of which no process is running; start one,")
        say(f"  or delete it without: {program()} delete {title} --force")
    if not wait:
        return ExitCode.SUCCESS
    run = await wait_for(client, deleted.run_id)
    if run.status != "Succeeded":
        say(f"error: {title} is not gone: its delete run {run.run_id} is {run.status}: {run.reason}; delete it again")
        return exit_code_of(run.status)
    # The record goes in a commit after that of the run's end. One that is not being deleted is a new one of that name.
    with contextlib.suppress(NotFoundError):
        while (await noun.read(client, name)).get("deleting"):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.1)
    print(f"{title} deleted")
    return ExitCode.SUCCESS


def _say_if_shipped(kind: str, name: str) -> None:
    import pipelines

    shipped = {"definition": pipelines.definitions, "pipeline": pipelines.pipelines}
    if kind in shipped and name in shipped[kind]():
        say(f"note: {kind}/{name} ships with Conveyor Runtime; `up` and `serve` register it again when they start")


async def _absent_drivers(client: Client, run_id: str) -> str:
    """The drivers of which a delete run wants something and none is there; empty if all are."""
    run = await client.get_run(run_id)
    there = {it.name for it in await client.drivers() if it.instances or it.sdk == "foreign"}
    wanted = dict.fromkeys(step.driver for step in run.steps if not step.status.terminal)
    return ", ".join(name for name in wanted if name not in there)
