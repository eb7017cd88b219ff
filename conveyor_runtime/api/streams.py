"""Live logs on the wire: server-sent events, and on the same paths a WebSocket for whoever asks to upgrade."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Query, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from conveyor_runtime.api.deps import Services, ServicesDep, find_run
from conveyor_runtime.api.follow import RunEnds, follow
from conveyor_runtime.api.gate import HEAD
from conveyor_runtime.api.logs import line_fields
from conveyor_runtime.api.problems import problem_response
from conveyor_runtime.errors import ConveyorError, NotFound
from conveyor_runtime.models import RunRecord, Status
from conveyor_runtime.store.logs import LogEntry
from conveyor_runtime.telemetry import metrics

log = logging.getLogger(__name__)

router = APIRouter(tags=["logs"])

#: WebSocket close codes.
_ENDED, _COME_AGAIN, _REFUSED = 1000, 1012, 1008

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "Lines as events with their id; last, an event `end`."}
}
_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no"}

After = Annotated[int, Query(ge=0, description="Lines behind this id.")]
LastEventId = Annotated[int | None, Header(ge=0, description="As `after`, and stronger: what browsers send.")]


@router.get("/logs/streams/{driver}/{run_id}", response_class=StreamingResponse, responses=_STREAM)
async def follow_driver(
    driver: str,
    run_id: str,
    services: ServicesDep,
    request: Request,
    after: After = 0,
    last_event_id: LastEventId = None,
) -> Response:
    """Follow the lines of one driver in a run, to the run's end. A WebSocket on upgrade."""
    return await _events(services, request, run_id, driver, after if last_event_id is None else last_event_id)


@router.get("/logs/pipeline/{run_id}", response_class=StreamingResponse, responses=_STREAM)
@router.get("/logs/{run_id}", response_class=StreamingResponse, responses=_STREAM)
async def follow_run(
    run_id: str, services: ServicesDep, request: Request, after: After = 0, last_event_id: LastEventId = None
) -> Response:
    """Follow the log of a run to its end. A WebSocket on upgrade."""
    return await _events(services, request, run_id, "", after if last_event_id is None else last_event_id)


@router.websocket("/logs/streams/{driver}/{run_id}")
async def socket_driver(
    websocket: WebSocket, driver: str, run_id: str, services: ServicesDep, after: After = 0
) -> None:
    """Follow the lines of one driver in a run."""
    await _socket(websocket, services, run_id, driver, after)


@router.websocket("/logs/pipeline/{run_id}")
@router.websocket("/logs/{run_id}")
async def socket_run(websocket: WebSocket, run_id: str, services: ServicesDep, after: After = 0) -> None:
    """Follow the log of a run."""
    await _socket(websocket, services, run_id, "", after)


# -- server-sent events ------------------------------------------------------------------------------------------


async def _events(services: Services, request: Request, run_id: str, driver: str, after: int) -> Response:
    run = await find_run(services, run_id)
    if request.scope.get(HEAD):
        return Response(headers=_HEADERS)
    feed = follow(services, request.app.state.ends, run, driver=driver, after=after)
    return StreamingResponse(_encoded(feed, run), headers=_HEADERS)


async def _encoded(feed: AsyncGenerator[list[LogEntry] | Status | None], run: RunRecord) -> AsyncGenerator[bytes]:
    with _counted("sse"):
        last = ""
        # At once, so that a client knows it is heard before there is anything to say.
        yield b": follows\n\n"
        try:
            async with contextlib.aclosing(feed):
                async for item in feed:
                    if item is None:
                        yield b": alive\n\n"
                    elif isinstance(item, Status):
                        yield format_sse_event(event="end", data_str=f'{{"status":"{item}"}}', id=last or None)
                    else:
                        last = str(item[-1].seq)
                        yield b"".join(map(_event, item))
        except ConveyorError as error:
            # The stream breaks off without its end event, and the client comes back with the last id it has.
            _broke_off(run, error)


def _event(entry: LogEntry) -> bytes:
    fields = line_fields(entry)
    del fields["id"]
    # By hand: our JSON holds no line break, so there is nothing to split.
    return b"data: %s\nid: %d\n\n" % (orjson.dumps(fields), entry.seq)


# -- WebSocket ---------------------------------------------------------------------------------------------------


async def _socket(websocket: WebSocket, services: Services, run_id: str, driver: str, after: int) -> None:
    try:
        run = await find_run(services, run_id)
    except NotFound as error:
        await _refuse(websocket, error.status, str(error))
        return
    except ConveyorError as error:
        await _refuse(websocket, 503, str(error))
        return
    await websocket.accept()
    ends: RunEnds = websocket.app.state.ends
    given = websocket.headers.get("last-event-id", "")
    after = int(given) if given.isascii() and given.isdecimal() else after
    with _counted("websocket"):
        sending = asyncio.create_task(_send(websocket, follow(services, ends, run, driver=driver, after=after), run))
        # Nothing is expected from the client, but only by listening does one learn that it went away.
        listening = asyncio.create_task(_until_gone(websocket))
        try:
            await asyncio.wait({sending, listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, listening):
                task.cancel()
            await asyncio.wait({sending, listening})
        if not sending.cancelled():
            sending.result()


async def _send(websocket: WebSocket, feed: AsyncGenerator[list[LogEntry] | Status | None], run: RunRecord) -> None:
    code = _COME_AGAIN
    try:
        async with contextlib.aclosing(feed):
            async for item in feed:
                if isinstance(item, Status):
                    await websocket.send_text(f'{{"event":"end","status":"{item}"}}')
                    code = _ENDED
                    break
                for entry in item or ():  # signs of life are the server's pings here
                    await websocket.send_text(orjson.dumps(line_fields(entry)).decode())
    except ConveyorError as error:
        _broke_off(run, error)
    except (WebSocketDisconnect, RuntimeError):
        return
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await websocket.close(code)


async def _until_gone(websocket: WebSocket) -> None:
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


async def _refuse(websocket: WebSocket, status: int, detail: str) -> None:
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(problem_response(status, detail))
    else:
        await websocket.close(_REFUSED, detail[:120])


# -- shared ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _counted(transport: str) -> Iterator[None]:
    gauge = metrics.LOG_FOLLOWERS.labels(transport)
    gauge.inc()
    try:
        yield
    finally:
        gauge.dec()


def _broke_off(run: RunRecord, error: ConveyorError) -> None:
    log.warning("a live log broke off", extra={"run_id": run.run_id, "reason": str(error)})
