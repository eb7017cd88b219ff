"""The nouns of `get`, `describe` and `delete`: how each is listed, read, shown and removed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conveyor_runtime.cli.output import Column, age, between, plain

if TYPE_CHECKING:
    from conveyor_runtime.client import Client, Deleted

__all__ = ["NOUNS", "Noun", "RunFilter", "find_noun", "title_of", "unknown_type"]

Row = dict[str, Any]


@dataclass(frozen=True)
class RunFilter:
    """Which runs `get runs` lists."""

    status: Sequence[str] = ()
    type: str | None = None
    name: str | None = None
    pipeline: str | None = None
    limit: int = 50


@dataclass(frozen=True)
class Noun:
    """One kind of thing: `title` is what stands before the slash in `-o name`. `delete_by_force` is there where drivers
    may be asked to clean up, and asks none."""

    title: str
    columns: Sequence[Column]
    list_all: Callable[[Client, RunFilter], Awaitable[list[Row]]]
    read: Callable[[Client, str], Awaitable[Row]]
    delete: Callable[[Client, str], Awaitable[Deleted]] | None = None
    delete_by_force: Callable[[Client, str], Awaitable[Deleted]] | None = None


def title_of(row: Row) -> str:
    """A resource as `type/name`."""
    return f"{row['resource']}/{row['name']}"


def find_noun(word: str) -> Noun:
    """The noun of a word: one of ours in singular or plural, else a type of resources."""
    return _NOUNS.get(word.lower()) or _resources(word)


NOUNS = "resources, runs, definitions, pipelines, drivers"
"""What there is besides the types of resources."""


async def unknown_type(client: Client, word: str) -> str:
    """What to say of a word that is neither a noun nor a type of resources; empty if it is one of them."""
    from difflib import get_close_matches

    if word.lower() in _NOUNS:
        return ""
    types = [it.name for it in await client.list_definitions() if it.name not in _NOUNS]
    if word in types:
        return ""
    close = get_close_matches(word, types, 1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return f"there is no type {word}{meant}; there are {', '.join(types) or 'none yet'}"


# -- resources --------------------------------------------------------------------------------------------------


def _resource_state(row: Row) -> str:
    if row["deleting"]:
        return "deleting"
    if row["active_run"] is None:
        return "idle"
    waiting = len(row["queue"])
    return f"working, {waiting} waiting" if waiting else "working"


_RESOURCE_COLUMNS = (
    Column("TYPE", lambda it: it["resource"]),
    Column("NAME", lambda it: it["name"]),
    Column("GENERATION", lambda it: str(it["generation"]), spared=True),
    Column("STATE", _resource_state),
    Column("RUN", lambda it: it["active_run"] or it["last_run"] or "-"),
    Column("AGE", lambda it: age(it["created_at"]), spared=True),
)


def _resources(type_: str | None) -> Noun:
    async def list_all(client: Client, _: RunFilter) -> list[Row]:
        return [plain(it, "runid") for it in await client.list_resources(type_)]

    async def read(client: Client, name: str) -> Row:
        return plain(await client.get_resource(type_ or "", name), "runid")

    async def delete(client: Client, name: str) -> Deleted:
        return await client.delete_resource(type_ or "", name)

    async def by_force(client: Client, name: str) -> Deleted:
        return await client.delete_resource(type_ or "", name, force=True)

    return Noun(type_ or "", _RESOURCE_COLUMNS, list_all, read, delete, by_force)


# -- runs -------------------------------------------------------------------------------------------------------

_RUN_COLUMNS = (
    Column("RUN", lambda it: it["run_id"]),
    Column("RESOURCE", lambda it: title_of(it["resource"])),
    Column("EVENT", lambda it: it["event"], spared=True),
    Column("STATUS", lambda it: it["status"]),
    Column(
        "STEPS",
        lambda it: f"{sum(step['status'] == 'Succeeded' for step in it['steps'])}/{len(it['steps'])}",
        spared=True,
    ),
    Column("AGE", lambda it: age(it["created_at"]), spared=True),
    Column("DURATION", lambda it: between(it["started_at"], it["finished_at"]), spared=True),
    Column("REASON", lambda it: it["reason"]),
)


async def _list_runs(client: Client, wanted: RunFilter) -> list[Row]:
    from conveyor_runtime.models import Status

    runs = await client.list_runs(
        status=[Status(it) for it in wanted.status] or None,
        type=wanted.type,
        name=wanted.name,
        pipeline=wanted.pipeline,
        limit=wanted.limit,
    )
    return [plain(run) for run in runs]


async def _read_run(client: Client, name: str) -> Row:
    return plain(await client.get_run(name))


# -- definitions, pipelines, drivers ----------------------------------------------------------------------------

_DEFINITION_COLUMNS = (
    Column("NAME", lambda it: it["name"]),
    Column("PIPELINE", lambda it: it.get("pipeline") or "-"),
    Column("DESCRIPTION", lambda it: it["description"]),
)

_PIPELINE_COLUMNS = (
    Column("NAME", lambda it: it["name"]),
    Column("RESOURCE", lambda it: it["resource"]),
    Column("REVISION", lambda it: str(it["revision"]), spared=True),
    Column("STEPS", lambda it: ", ".join(step["id"] for step in [*it["steps"], *it["finally"]]), spared=True),
    Column("DESCRIPTION", lambda it: it["description"]),
)

_DRIVER_COLUMNS = (
    Column("NAME", lambda it: it["name"]),
    Column("PROCESSES", lambda it: "?" if it["sdk"] == "foreign" else str(len(it["instances"]))),
    Column("SLOTS", lambda it: str(sum(one["slots"] for one in it["instances"])), spared=True),
    Column("TYPES", lambda it: ", ".join(it["types"]), spared=True),
    Column("EVENTS", lambda it: ", ".join(it["events"]), spared=True),
    Column("NODES", lambda it: ", ".join(sorted({node for one in it["instances"] for node in one["nodes"]}))),
)


async def _list_definitions(client: Client, _: RunFilter) -> list[Row]:
    return [plain(it) for it in await client.list_definitions()]


async def _read_definition(client: Client, name: str) -> Row:
    return plain(await client.get_definition(name))


async def _delete_definition(client: Client, name: str) -> Deleted:
    from conveyor_runtime.client import Deleted

    await client.delete_definition(name)
    return Deleted(name=name, gone=True)


async def _list_pipelines(client: Client, _: RunFilter) -> list[Row]:
    return [plain(it) for it in await client.list_pipelines()]


async def _read_pipeline(client: Client, name: str) -> Row:
    return plain(await client.get_pipeline(name))


async def _delete_pipeline(client: Client, name: str) -> Deleted:
    return await client.delete_pipeline(name)


async def _delete_pipeline_by_force(client: Client, name: str) -> Deleted:
    return await client.delete_pipeline(name, force=True)


async def _list_drivers(client: Client, _: RunFilter) -> list[Row]:
    return [plain(it) for it in await client.drivers()]


async def _read_driver(client: Client, name: str) -> Row:
    from conveyor_runtime.client import NotFoundError

    for driver in await client.drivers():
        if driver.name == name:
            return plain(driver)
    raise NotFoundError(f"there is no driver named {name}", status=404)


async def _forget_driver(client: Client, name: str) -> Deleted:
    from conveyor_runtime.client import Deleted

    await client.forget_driver(name)
    return Deleted(name=name, gone=True)


_RUN = Noun("run", _RUN_COLUMNS, _list_runs, _read_run)
_DEFINITION = Noun("definition", _DEFINITION_COLUMNS, _list_definitions, _read_definition, _delete_definition)
_PIPELINE = Noun(
    "pipeline", _PIPELINE_COLUMNS, _list_pipelines, _read_pipeline, _delete_pipeline, _delete_pipeline_by_force
)
_DRIVER = Noun("driver", _DRIVER_COLUMNS, _list_drivers, _read_driver, _forget_driver)

_NOUNS: Mapping[str, Noun] = {
    "run": _RUN,
    "runs": _RUN,
    "definition": _DEFINITION,
    "definitions": _DEFINITION,
    "pipeline": _PIPELINE,
    "pipelines": _PIPELINE,
    "driver": _DRIVER,
    "drivers": _DRIVER,
    "resource": _resources(None),
    "resources": _resources(None),
}
