"""What a command is about: `TYPE NAME` or `TYPE/NAME`, or a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from conveyor_runtime.cli.errors import CliError, program

if TYPE_CHECKING:
    from conveyor_runtime.client import Client

__all__ = ["RunName", "RunTarget", "find_run", "resources_named", "split_target"]

RunTarget = Annotated[
    str, typer.Argument(metavar="RUN|TYPE", help="A run's id; or a resource, TYPE NAME or TYPE/NAME: its latest run.")
]
RunName = Annotated[str, typer.Argument(metavar="NAME", help="Of a resource, unless it stands behind the type.")]


def split_target(type_: str, name: str) -> tuple[str, str]:
    """`TYPE NAME`, also written `TYPE/NAME`; the name is empty where none was given. Raises BadParameter."""
    if "/" not in type_:
        return type_, name
    if name:
        raise typer.BadParameter(f"give TYPE NAME or TYPE/NAME: {type_} has a name already, and there is {name}")
    type_, _, name = type_.partition("/")
    return type_, name


async def find_run(client: Client, target: str, name: str) -> str:
    """The run's id itself, or that of a resource's active or last run. Raises CliError."""
    type_, name = split_target(target, name)
    if type_ in ("run", "runs") and name:
        type_, name = name, ""
    if not name:
        return await _existing_run(client, type_)
    info = await client.get_resource(type_, name)
    run_id = info.active_run or info.last_run
    if not run_id:
        raise CliError(target, "it has had no run yet", f"`{program()} describe {type_} {name}` says more")
    return run_id


async def _existing_run(client: Client, run_id: str) -> str:
    from conveyor_runtime.client import NotFoundError

    try:
        await client.get_run(run_id)
    except NotFoundError as error:
        meant = await resources_named(client, run_id)
        if not meant:
            raise
        raise CliError(f"there is no run {run_id}", f"did you mean {meant}?") from error
    return run_id


async def resources_named(client: Client, name: str) -> str:
    """The resources of that name that have had a run, as one would type them; empty if there are none."""
    runs = await client.list_runs(name=name, limit=20)
    return " or ".join(dict.fromkeys(f"{it.resource.resource}/{name}" for it in runs))
