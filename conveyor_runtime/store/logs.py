"""The log of runs, read straight from its stream: what is stored is what a follower sees, in order, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass

from pydantic import ValidationError

from conveyor_runtime.bus import Bus, StoredMsg, Tail, subjects
from conveyor_runtime.bus.messages import last_by_subject
from conveyor_runtime.bus.streams import LOGS, stream_info
from conveyor_runtime.models import LogLine


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A stored line and its place in the stream: the id to resume from."""

    seq: int
    line: LogLine


class LogStore:
    """Reads `cv-logs`."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def last_seq(self, run_id: str | None = None) -> int:
        """The sequence of a run's last line (None = of the stream); 0 = there is none."""
        if run_id is None:
            info = await stream_info(self._bus, LOGS)
            return int(info["state"]["last_seq"]) if info else 0
        message = await last_by_subject(self._bus, LOGS, subjects.log(run_id))
        return message.seq if message else 0

    async def read(self, run_id: str | None = None, *, after: int = 0) -> AsyncIterator[LogEntry]:
        """The lines stored so far, of one run or of all."""
        until = await self.last_seq(run_id)
        if until > after:
            async for entry in LogFollower(self._bus, run_id, after=after, until=until):
                yield entry

    async def forget(self, run_id: str) -> None:
        """Remove the lines of a run."""
        await self._bus.api(f"STREAM.PURGE.{LOGS}", {"filter": subjects.log(run_id)})

    def follow(self, run_id: str, ended: Awaitable[None], *, after: int = 0) -> LogFollower:
        """The lines of a run from `after` on, live, until the last one there is once `ended` is done."""
        return LogFollower(self._bus, run_id, after=after, ended=ended)


class LogFollower:
    """Iterates over lines without gap or repeat; ends at `until`, or at the last line there is once `ended` is done."""

    def __init__(
        self,
        bus: Bus,
        run_id: str | None,
        *,
        after: int = 0,
        until: int | None = None,
        ended: Awaitable[None] | None = None,
    ) -> None:
        self._bus = bus
        self._run_id = run_id
        self._subject = subjects.log(run_id) if run_id else "logs.>"
        self._at = after
        self._until = until
        self._ended = ended
        self._seen: dict[tuple[str, str, str, int, int], int] = {}

    async def __aiter__(self) -> AsyncIterator[LogEntry]:
        tail = Tail(self._bus, LOGS, self._subject, start_seq=self._at + 1)
        messages = aiter(tail)
        ending = asyncio.ensure_future(self._find_end()) if self._ended is not None else None
        upcoming: asyncio.Task[StoredMsg] | None = None
        try:
            while self._until is not None and self._at < self._until:
                # Nothing else to wait for, so no task: this is done for every line there is.
                message = await anext(messages)
                self._at = message.seq
                if (line := _decode(message)) is not None and self._new(line):
                    yield LogEntry(message.seq, line)
            while self._until is None or self._at < self._until:
                upcoming = upcoming or asyncio.ensure_future(anext(messages))
                waiting = {upcoming, ending} if ending and self._until is None else {upcoming}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if ending and ending.done():
                    self._until = ending.result()
                if not upcoming.done():
                    continue
                message, upcoming = upcoming.result(), None
                self._at = message.seq
                if (line := _decode(message)) is not None and self._new(line):
                    yield LogEntry(message.seq, line)
        finally:
            for task in (ending, upcoming):
                if task:
                    task.cancel()
                    await asyncio.wait({task})
            await tail.aclose()

    async def _find_end(self) -> int:
        assert self._ended is not None
        await self._ended
        return await LogStore(self._bus).last_seq(self._run_id)

    def _new(self, line: LogLine) -> bool:
        """Whether this line was not handed out before: a retried publish may have stored it twice."""
        if line.seq is None:
            return True
        writer = (line.runid, line.driver, line.step, line.attempt, line.takeover)
        if line.seq <= self._seen.get(writer, -1):
            return False
        self._seen[writer] = line.seq
        return True


def _decode(message: StoredMsg) -> LogLine | None:
    try:
        return LogLine.model_validate_json(message.data)
    except ValidationError:
        # A foreign publisher's line that is no log line: shown as text rather than lost.
        text = message.data.decode(errors="replace")
        return LogLine(
            runid=message.subject.partition(".")[2], message=text, timestamp=str(int(message.time.timestamp()))
        )
