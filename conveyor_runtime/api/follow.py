"""The log of a run as it happens: one source for SSE and WebSocket, without gap or repeat, to the run's end."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator
from typing import Any, cast

from conveyor_runtime.api.deps import Services
from conveyor_runtime.models import RunRecord, Status
from conveyor_runtime.store import View
from conveyor_runtime.store.logs import LogEntry

#: Seconds without a line after which a sign of life is due.
HEARTBEAT = 15.0


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
) -> AsyncGenerator[LogEntry | Status | None]:
    """The lines of `run` (of one driver) behind stream sequence `after`, live.

    None is a sign of life; the last item is the run's status. It ends without one when this process closes: the
    follower then goes on elsewhere, from the last line it has.
    """
    ended = ends.future(run)
    lines = cast(AsyncGenerator[LogEntry], aiter(services.logs.follow(run.run_id, ended, after=after)))
    closing = asyncio.create_task(services.closing.wait())
    upcoming: asyncio.Future[LogEntry] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(lines))
            waiting: set[asyncio.Future[Any]] = {upcoming, closing}
            await asyncio.wait(waiting, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
            if closing.done():
                return
            if not upcoming.done():
                yield None
                continue
            try:
                entry = upcoming.result()
            except StopAsyncIteration:
                break
            upcoming = None
            if not driver or entry.line.driver == driver:
                yield entry
        found = await services.state.run(run.run_id)
        yield found.record.status if found else run.status
    finally:
        ended.cancel()
        await _end(closing, upcoming)
        await lines.aclose()


async def _end(*tasks: asyncio.Future[Any] | None) -> None:
    left = [task for task in tasks if task is not None and not task.done()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)
