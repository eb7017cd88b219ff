"""Runs: one passage of one event through all its steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from conveyor_runtime.api import present
from conveyor_runtime.api.deps import Current, Page, ServicesDep, find_run, revision_header
from conveyor_runtime.api.documents import OptionalDocument
from conveyor_runtime.api.openapi import takes
from conveyor_runtime.api.shapes import CancelRequest
from conveyor_runtime.engine.validation import parse
from conveyor_runtime.models import Run, RunRecord, Status
from conveyor_runtime.store import View
from conveyor_runtime.store.run_index import ALL, LIVE, Key, RunIndex

router = APIRouter(tags=["runs"])

#: Runs looked through between two breaths of the event loop.
_STRIDE = 500


@dataclass(frozen=True)
class RunFilter:
    """Which runs are asked for; what is left out does not matter."""

    status: Annotated[list[Status] | None, Query(description="One or several of these.")] = None
    type: Annotated[str | None, Query(description="The type of the resource.")] = None
    name: Annotated[str | None, Query(description="The name of the resource.")] = None
    pipeline: Annotated[str | None, Query()] = None

    def keys(self, index: RunIndex) -> list[Key]:
        """Where the runs that may match are found; of several ways the one with the fewest."""
        ways: list[list[Key]] = [[ALL]]
        if self.status:
            live = [] if all(status.terminal for status in self.status) else [LIVE]
            ways.append([*live, *(("status", status.value) for status in set(self.status) if status.terminal)])
        if self.type is not None and self.name is not None:
            ways.append([("resource", f"{self.type}.{self.name}")])
        named = {"type": self.type, "name": self.name, "pipeline": self.pipeline}
        ways += [[(kind, value)] for kind, value in named.items() if value is not None]
        return min(ways, key=index.count)

    def may_match(self, raw: bytes) -> bool:
        """Whether a stored run is worth decoding. Every word of the filter must stand in it as it is."""
        only_ended = self.status is not None and all(status.terminal for status in self.status)
        if only_ended and not any(f'"status":"{status}"'.encode() in raw for status in self.status or ()):
            return False
        wanted = (("type", self.type), ("name", self.name), ("pipeline", self.pipeline))
        return all(value is None or f'"{key}":"{value}"'.encode() in raw for key, value in wanted)

    def matches(self, run: RunRecord) -> bool:
        """Whether the run is one of them, its status aside."""
        wanted = ((self.type, run.type), (self.name, run.name), (self.pipeline, run.pipeline))
        return all(value is None or value == actual for value, actual in wanted)


@router.get("/runs", dependencies=[Current])
async def list_all(
    services: ServicesDep,
    wanted: Annotated[RunFilter, Depends()],
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: str = "",
) -> Page[Run]:
    """Runs, newest first, without the data of their steps."""
    page: list[Run] = []
    async for run in _matching(services.state.view, wanted, cursor):
        shown = present.listed_run(services.engine, run)
        # What is shown depends on claims and on the resource, so the status can only be compared now.
        if wanted.status and shown.status not in wanted.status:
            continue
        if len(page) == limit:
            return Page(items=page, next_cursor=page[-1].run_id)
        page.append(shown)
    return Page(items=page)


async def _matching(view: View, wanted: RunFilter, cursor: str) -> AsyncIterator[RunRecord]:
    keys = wanted.keys(view.runs)
    while run_ids := view.runs.before(keys, cursor, _STRIDE):
        for run_id in run_ids:
            found = view.run(run_id)
            if found is None or not wanted.may_match(found.raw):
                continue
            run = found.look()
            if wanted.matches(run):
                yield run
        cursor = run_ids[-1]
        await asyncio.sleep(0)


@router.get("/runs/{run_id}")
async def read(run_id: str, services: ServicesDep) -> Run:
    """A run and its steps, with what their drivers reported."""
    return await present.whole_run(services.engine, await find_run(services, run_id))


@router.post("/runs/{run_id}/cancel", status_code=202, responses={200: {"model": Run}}, **takes(CancelRequest, False))
async def cancel(run_id: str, document: OptionalDocument, services: ServicesDep, response: Response) -> Run:
    """Ask a run to end: 202 while it does (`finally` steps still run), 200 when it has ended already."""
    asked = parse(CancelRequest, document, "the request")
    await find_run(services, run_id)
    run = await services.intake.cancel(run_id, who="the API", why=asked.reason or "no reason given")
    if run.status.terminal:
        response.status_code = 200
    found = await services.state.run(run_id)
    if found is not None:
        response.headers.update(revision_header(found.revision))
    return await present.whole_run(services.engine, run)


@router.post("/runs/{run_id}/rerun", status_code=202)
async def rerun(run_id: str, services: ServicesDep, response: Response) -> Run:
    """Run a run's resource once more, as it is now and for the same event: the new run.

    404 when the run or its resource is gone, 409 while the resource is being deleted.
    """
    await find_run(services, run_id)
    accepted = await services.intake.rerun(run_id)
    response.headers.update(revision_header(accepted.revision))
    return await present.whole_run(services.engine, await find_run(services, accepted.run_id))
