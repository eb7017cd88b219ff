"""Reads a run's log: what is stored page by page; live through restarts of the server, every line once, in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import httpx2
import orjson
from pydantic import TypeAdapter, ValidationError

from conveyor_runtime.client.errors import ClientError, UnavailableError, UnreachableError, not_understood
from conveyor_runtime.client.models import LoggedLine
from conveyor_runtime.client.transport import Transport
from conveyor_runtime.kit.backoff import Backoff

#: Seconds without a sign of life after which the connection counts as dead; the server gives one every 15.
SILENCE = 45.0

#: Seconds to wait for a server that has not answered once.
STRANGER = 2.0


_LINES = TypeAdapter(list[LoggedLine])


class Absence:
    """Waits for a server that went away, up to `patience` seconds; for one never met, only a moment."""

    def __init__(self, patience: float) -> None:
        self._patience = min(patience, STRANGER)
        self._known = patience
        self._since: float | None = None
        self._backoff = Backoff(0.1, 3.0)

    def over(self) -> None:
        """The server answered."""
        self._patience = self._known
        self._since = None

    async def endure(self, error: ClientError) -> None:
        """Wait before the next try; raises `error` once patience is at its end."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._backoff.reset()
        if now - self._since >= self._patience:
            raise error
        await asyncio.sleep(min(self._backoff.next(), self._patience))


async def stored_pages(transport: Transport, run_id: str, *, after: int) -> AsyncGenerator[list[LoggedLine]]:
    """The lines stored so far, behind id `after`, a page at a time. Raises ClientError."""

    def ask(after: int | str) -> asyncio.Task[httpx2.Response]:
        return asyncio.create_task(transport.send("GET", "/logs", params={"runid": run_id, "after": str(after)}))

    asked: asyncio.Task[httpx2.Response] | None = ask(after)
    try:
        while asked is not None:
            response = await asked
            # The server works on the next page while this one is read, in a thread so that the request goes out.
            asked = ask(response.headers["Conveyor-Next"]) if "Conveyor-Next" in response.headers else None
            try:
                yield await asyncio.to_thread(_LINES.validate_json, response.content)
            except ValidationError as error:
                raise not_understood(error) from None
    finally:
        if asked is not None:
            asked.cancel()
            await asyncio.wait([asked])


async def follow(transport: Transport, path: str, *, after: int, patience: float) -> AsyncGenerator[LoggedLine]:
    """The lines behind id `after`. Comes back for the rest whenever the stream breaks off before its end event.

    Raises ClientError once the server has been away for `patience` seconds, or refuses for good (no such run).
    """
    absence = Absence(patience)
    seen: dict[tuple[str, int, int], int] = {}
    while True:
        try:
            async with transport.stream(path, after=after, silence=SILENCE) as events:
                absence.over()
                async for event in events:
                    if event.event == "end":
                        return
                    if event.event != "message" or not event.id or int(event.id) <= after:
                        continue
                    after = int(event.id)
                    line = LoggedLine.model_validate({**orjson.loads(event.data), "id": after})
                    if _is_new(line, seen):
                        yield line
            error: ClientError = UnreachableError(f"{transport.base_url} broke off the log before its end")
        except httpx2.TransportError as failure:
            error = transport.unreachable(failure)
        except UnavailableError as failure:
            error = failure
        await absence.endure(error)


def _is_new(line: LoggedLine, seen: dict[tuple[str, int, int], int]) -> bool:
    """Whether a line was not handed out before. A line stored twice (its writer heard no answer) has two ids but one
    number of its writer's; the server leaves the second out, but not across a reconnect."""
    if line.seq is None:
        return True
    writer = (line.step, line.attempt, line.takeover)
    if line.seq <= seen.get(writer, -1):
        return False
    seen[writer] = line.seq
    return True
