"""What routes are given, and what they share: services, names from the path, revisions, pages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar, cast

from fastapi import Depends, Header, Path, Query
from fastapi.requests import HTTPConnection
from pydantic import BaseModel

from conveyor_runtime.bus import Bus
from conveyor_runtime.engine import Engine, Intake
from conveyor_runtime.errors import InvalidInput, NotFound, Problem
from conveyor_runtime.models import RunRecord, is_name
from conveyor_runtime.models.base import NAME_PATTERN
from conveyor_runtime.store import LogStore, State

#: Header of every answer to a write, and of a request for a list that must have seen that write.
REVISION = "Conveyor-Revision"

T = TypeVar("T")


@dataclass(frozen=True)
class Services:
    """What the API stands on.

    `ready` says whether this process can serve, and the state of each part. `disk_is_full`: that nothing new can be
    stored. `closing` is set when it drains: live logs
    then end without their end event, and the followers come back to whoever serves next.
    """

    state: State
    engine: Engine
    intake: Intake
    logs: LogStore
    bus: Bus
    ready: Callable[[], tuple[bool, dict[str, str]]]
    disk_is_full: Callable[[], bool] = lambda: False
    closing: asyncio.Event = field(default_factory=asyncio.Event)


async def _services(connection: HTTPConnection) -> Services:
    return cast(Services, connection.app.state.services)


ServicesDep = Annotated[Services, Depends(_services)]


# -- names -------------------------------------------------------------------------------------------------------


TypeName = Annotated[str, Path(alias="type", pattern=NAME_PATTERN)]
ObjectName = Annotated[str, Path(alias="name", pattern=NAME_PATTERN)]


async def find_run(services: Services, run_id: str) -> RunRecord:
    """A run, as the store has it now. Raises NotFound."""
    found = await services.state.run(run_id) if is_name(run_id) else None
    if found is None:
        raise NotFound(f"there is no run {run_id[:140]}")
    return found.record


def same_as_path(document: dict[str, Any], **expected: str) -> dict[str, Any]:
    """The document with what the path names filled in. Raises InvalidInput where they contradict each other."""
    for key, value in expected.items():
        if document.get(key) not in (None, "", value):
            detail = f"must be {value}, as in the path, or be left out"
            raise InvalidInput(f"{key}: {detail}", [Problem(f"/{key}", detail)])
    return {**document, **expected}


# -- reading one's own writes ------------------------------------------------------------------------------------


def revision_header(revision: int) -> dict[str, str]:
    """The header that tells a write's revision."""
    return {REVISION: str(revision)}


async def _current(
    services: ServicesDep,
    revision: Annotated[int | None, Query(ge=0, description="List nothing older than this revision.")] = None,
    conveyor_revision: Annotated[int | None, Header(ge=0, description="The same, as a header.")] = None,
) -> None:
    given = [number for number in (revision, conveyor_revision) if number is not None]
    await services.state.view.wait_for(max(given, default=None))


#: Dependency of lists: they wait for the revision the client names, else for all this process wrote.
Current = Depends(_current)


# -- pages -------------------------------------------------------------------------------------------------------


class Page(BaseModel, Generic[T]):
    """Part of a list. `next_cursor` asks for the part behind it; empty = this is the last."""

    items: list[T]
    next_cursor: str = ""


def paginate(items: Iterable[T], limit: int, key: Callable[[T], str]) -> tuple[list[T], str]:
    """The first `limit` items, and the cursor behind them."""
    page: list[T] = []
    for item in items:
        if len(page) == limit:
            return page, key(page[-1])
        page.append(item)
    return page, ""
