"""Logs of runs: stored lines asked for, lines added by hand, live lines followed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, cast

import orjson
import uuid_utils
from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import PlainTextResponse

from conveyor_runtime.api.deps import Services, ServicesDep
from conveyor_runtime.api.documents import Document
from conveyor_runtime.api.openapi import takes
from conveyor_runtime.api.shapes import LogDraft
from conveyor_runtime.bus import subjects
from conveyor_runtime.engine.validation import parse
from conveyor_runtime.errors import InvalidInput, Problem
from conveyor_runtime.models import NAME_RULE, LogLine, is_name
from conveyor_runtime.store.logs import LogEntry
from conveyor_runtime.telemetry import metrics

router = APIRouter(tags=["logs"])

#: Header that says from where to read on, when there are more lines than were asked for.
NEXT = "Conveyor-Next"

MOST = 10_000


@dataclass(frozen=True)
class LogFilter:
    """Which lines are asked for; what is left out does not matter."""

    runid: str | None = None
    driver: str | None = None
    pipeline: str | None = None

    def matches(self, line: LogLine, services: Services) -> bool:
        """Whether the line is one of them. A line that names no pipeline belongs to that of its run."""
        if self.driver is not None and line.driver != self.driver:
            return False
        if self.pipeline is None:
            return True
        run = None if line.pipeline else services.state.view.run(line.runid)
        return self.pipeline == (run.record.pipeline if run else line.pipeline)


#: Members every line is sent with: Conveyor's five.
_ALWAYS = frozenset({"runid", "driver", "pipeline", "timestamp", "message"})
_DEFAULTS = {name: field.get_default(call_default_factory=True) for name, field in LogLine.model_fields.items()}


def line_fields(entry: LogEntry) -> dict[str, Any]:
    """A line as it is sent: its id (to read on from), Conveyor's five members, and what else it has."""
    # By hand: its members are JSON as they are, and this is done for every line of every reader.
    fields = {key: value for key, value in vars(entry.line).items() if key in _ALWAYS or value != _DEFAULTS[key]}
    fields["id"] = entry.seq
    return fields


@router.get("/logs", response_model=list[dict[str, Any]])
async def read(
    services: ServicesDep,
    wanted: Annotated[LogFilter, Depends()],
    limit: Annotated[int, Query(ge=1, le=MOST)] = MOST,
    after: Annotated[int | None, Query(ge=0, description="Lines behind this id, oldest first.")] = None,
) -> Response:
    """Stored lines in order: the first `limit` behind `after`, or without it the last `limit` there are."""
    if wanted.runid is not None and not is_name(wanted.runid):
        return Response(b"[]", media_type="application/json")
    headers = {}
    if after is not None:
        entries = [entry async for entry in _first(services, wanted, after, limit + 1)]
        if len(entries) > limit:
            entries.pop()
            headers[NEXT] = str(entries[-1].seq)
    else:
        entries = list(await _last(services, wanted, limit))
    return Response(orjson.dumps([line_fields(entry) for entry in entries]), 200, headers, "application/json")


async def _first(services: Services, wanted: LogFilter, after: int, limit: int) -> AsyncIterator[LogEntry]:
    entries = cast(AsyncGenerator[LogEntry], services.logs.read(wanted.runid, after=after))
    async with aclosing(entries):
        async for entry in entries:
            if wanted.matches(entry.line, services):
                yield entry
                limit -= 1
                if limit == 0:
                    return


async def _last(services: Services, wanted: LogFilter, limit: int) -> deque[LogEntry]:
    after = 0
    if wanted == LogFilter():
        # Every message of the stream is wanted, so the last ones are known by their numbers.
        after = max(await services.logs.last_seq() - limit, 0)
    last: deque[LogEntry] = deque(maxlen=limit)
    async for entry in services.logs.read(wanted.runid, after=after):
        if wanted.matches(entry.line, services):
            last.append(entry)
    return last


@router.post("/logs", status_code=201, response_class=PlainTextResponse, **takes(LogDraft))
async def add(document: Document, services: ServicesDep) -> str:
    """Add a line to a run's log."""
    line = parse(LogDraft, document, "the log line")
    if not is_name(line.runid):
        raise InvalidInput(f"runid: must be {NAME_RULE}", [Problem("/runid", f"must be {NAME_RULE}")])
    now = datetime.now(UTC)
    stored = line.model_copy(
        update={
            "timestamp": line.timestamp or str(int(time.time())),
            "time": line.time or now.isoformat().replace("+00:00", "Z"),
        }
    )
    # Without its number: readers take a number of a writer they know for a line they have seen.
    data = stored.model_dump_json(exclude={"seq"}).encode()
    await services.bus.publish(subjects.log(line.runid), data, msg_id=str(uuid_utils.uuid7()))
    metrics.LOG_LINES.inc()
    return "Created"
