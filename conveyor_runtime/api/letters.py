"""Dead letters: what nobody could work on, looked at, put back in play, or removed."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import orjson
from fastapi import APIRouter, Path, Query, Response
from pydantic import BeforeValidator

from conveyor_runtime.api.deps import Page, ServicesDep
from conveyor_runtime.engine.redrive import Redrive
from conveyor_runtime.errors import InvalidInput, NotFound, Problem
from conveyor_runtime.models import parse_duration, utc_now
from conveyor_runtime.models.letter import DeadLetter, Purged, Redriven, WholeDeadLetter
from conveyor_runtime.store.letters import Letters

router = APIRouter(tags=["dead letters"])

Age = Annotated[float, BeforeValidator(parse_duration)]
LetterId = Annotated[int, Path(alias="id", ge=1, lt=2**63)]


@router.get("/dead-letters")
async def list_all(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: Annotated[str, Query(pattern=r"^\d{0,18}$")] = "",
) -> Page[DeadLetter]:
    """Dead letters, oldest first, without their messages."""
    found = await Letters(services.bus).list(after=int(cursor or 0), limit=limit + 1)
    page = [letter.about for letter in found[:limit]]
    return Page(items=page, next_cursor=str(page[-1].id) if len(found) > limit else "")


@router.get("/dead-letters/{id}")
async def read(letter_id: LetterId, services: ServicesDep) -> WholeDeadLetter:
    """A dead letter with its message."""
    letter = await Letters(services.bus).get(letter_id)
    if letter is None:
        raise NotFound(f"there is no dead letter {letter_id}")
    try:
        data = orjson.loads(letter.data)
    except ValueError:
        data = letter.data.decode(errors="replace")
    return WholeDeadLetter(**letter.about.__dict__, headers=dict(letter.headers), data=data)


@router.post("/dead-letters/{id}/redrive", status_code=202)
async def redrive(letter_id: LetterId, services: ServicesDep) -> Redriven:
    """Put a dead letter back in play, and remove it.

    A dispatch: its step gets another attempt, or, where its run has ended, its resource another run. Anything else is
    published again to where it came from. 409 while its run is ending, or when its resource has had another run since.
    """
    return await Redrive(services.engine, services.intake, services.bus).redrive(letter_id)


@router.delete("/dead-letters/{id}", status_code=204, response_class=Response)
async def remove(letter_id: LetterId, services: ServicesDep) -> Response:
    """Remove a dead letter."""
    if not await Letters(services.bus).remove(letter_id):
        raise NotFound(f"there is no dead letter {letter_id}")
    return Response(status_code=204)


@router.delete("/dead-letters")
async def purge(
    services: ServicesDep,
    older_than: Annotated[Age | None, Query(description="Seconds, or 90s, 5m, 1h30m.")] = None,
    all_: Annotated[bool, Query(alias="all", description="Remove all there are.")] = False,
) -> Purged:
    """Remove the dead letters older than that, or all."""
    if (older_than is None) is not all_:
        detail = "say which: older_than, or all=true"
        raise InvalidInput(detail, [Problem("/query/older_than", detail)])
    before = None if older_than is None else utc_now() - timedelta(seconds=older_than)
    return Purged(purged=await Letters(services.bus).purge(before))
