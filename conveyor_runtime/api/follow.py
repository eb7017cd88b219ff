"""The log of a run as it happens: one source for SSE and WebSocket, without gap or repeat, to the run's end."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from typing import cast

from conveyor_runtime.api.deps import Services
from conveyor_runtime.models import RunRecord, Status
from conveyor_runtime.store import View
from conveyor_runtime.store.logs import LogEntry

#: Seconds without a line after which a sign of life is due.
HEARTBEAT = 15.0

#: Seconds that a line waits for company. Nobody sees it, and a burst of lines costs a tenth.
GATHER = 0.005

#: Lines read before the client has taken those it was sent.
MOST_AHEAD = 500


class RunEnds:
    """Tells when runs end. One listener on the view serves all followers."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._waiting: dict[str, set[asyncio.Future[None]]] = defaultdict(set)
        view.listen(self._noticed)

    def future(self, run: RunRecord) -> asyncio.Future[None]:
        """Done once the run is terminal (or removed); the waiter cancels it if it no longer cares."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if run.status.terminal or self._is_over(run.run_id):
            future.set_result(None)
        else:
            self._waiting[run.run_id].add(future)
            future.add_done_callback(lambda done: self._forget(run.run_id, done))
        return future

    def _is_over(self, run_id: str) -> bool:
        return self._view.run(run_id) is not None and run_id not in self._view.live_runs

    def _noticed(self, kind: str, parts: tuple[str, ...]) -> None:
        if kind == "run" and parts[0] in self._waiting and parts[0] not in self._view.live_runs:
            for future in self._waiting.pop(parts[0]):
                if not future.done():
                    future.set_result(None)

    def _forget(self, run_id: str, future: asyncio.Future[None]) -> None:
        if (futures := self._waiting.get(run_id)) is not None:
            futures.discard(future)
            if not futures:
                del self._waiting[run_id]


async def follow(
    services: Services, ends: RunEnds, run: RunRecord, *, driver: str = "", after: int = 0
) -> AsyncGenerator[list[LogEntry] | Status | None]:
    """The lines of `run` (of one driver) behind stream sequence `after`, live, those together that came together.

    None is a sign of life; the last item is the run's status. It ends without one when this process closes: the
    follower then goes on elsewhere, from the last line it has.
    """
    ended = ends.future(run)
    ahead = _Ahead(services.logs.follow(run.run_id, ended, after=after))
    closing = asyncio.create_task(_set_after(services.closing, ahead.news))
    clock = asyncio.get_running_loop().time
    due = clock() + HEARTBEAT
    try:
        over = False
        while not over:
            try:
                async with asyncio.timeout_at(due):
                    await ahead.news.wait()
            except TimeoutError:
                yield None
                due = clock() + HEARTBEAT
                continue
            if not ahead.task.done():
                await asyncio.sleep(GATHER)
            # Not before the pause: `take` would wipe out the news that it is closing.
            if services.closing.is_set():
                return
            over = ahead.task.done()
            if batch := [entry for entry in ahead.take() if not driver or entry.line.driver == driver]:
                yield batch
                due = clock() + HEARTBEAT
        ahead.task.result()
        found = await services.state.run(run.run_id)
        yield found.record.status if found else run.status
    finally:
        ended.cancel()
        closing.cancel()
        ahead.task.cancel()
        await asyncio.wait({closing, ahead.task})


class _Ahead:
    """Reads lines before they are asked for, a bounded number of them: what is there at once is sent at once."""

    def __init__(self, lines: AsyncIterable[LogEntry]) -> None:
        self.news = asyncio.Event()
        """Set when there are lines, or the task is done."""
        self._batch: list[LogEntry] = []
        self._room = asyncio.Event()
        self.task = asyncio.create_task(self._read(lines))

    async def _read(self, lines: AsyncIterable[LogEntry]) -> None:
        try:
            async with aclosing(cast(AsyncGenerator[LogEntry], aiter(lines))) as entries:
                async for entry in entries:
                    self._batch.append(entry)
                    self.news.set()
                    if len(self._batch) >= MOST_AHEAD:
                        self._room.clear()
                        await self._room.wait()
        finally:
            self.news.set()

    def take(self) -> list[LogEntry]:
        """What was read."""
        batch, self._batch = self._batch, []
        self.news.clear()
        self._room.set()
        return batch


async def _set_after(event: asyncio.Event, news: asyncio.Event) -> None:
    await event.wait()
    news.set()
