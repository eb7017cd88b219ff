"""The log of one attempt: structured lines, stored in order, each acknowledged before the result is."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Mapping
from secrets import token_hex
from typing import Literal

from conveyor_runtime.bus import Bus, Committer, Message, subjects
from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.reconcile.adapters import LineWriter, LogHandler
from conveyor_runtime.reconcile.lines import Lines
from conveyor_runtime.telemetry import metrics

log = logging.getLogger(__name__)

Level = Literal["debug", "info", "warning", "error"]

#: Lines in one commit.
_CHUNK = 200

#: Lines waiting to be stored above which `line` waits, and in a thread every call: at most some 40 MB.
_BACKLOG = 2000


class DriverLogger:
    """Logs to `logs.<run_id>`; usable from the loop and from threads.

    `info(message, **labels)` and its kin return at once on the loop, and in a thread wait while 2000 lines are waiting
    to be stored; so does `await line(text)`, which is what a stream of output should use. `handler()` makes it a stdlib
    logging handler, `stream()` a text file. A secret given to `redact` is masked in every later line.
    """

    def __init__(
        self,
        bus: Bus,
        committer: Committer,
        *,
        run_id: str,
        driver: str,
        pipeline: str = "",
        step: str = "",
        attempt: int = 0,
        takeover: int = 0,
    ) -> None:
        self._bus = bus
        self._committer = committer
        self._loop = asyncio.get_running_loop()
        self._subject = subjects.log(run_id)
        self._live = subjects.live_log(run_id, driver)
        self._lines = Lines(
            {"runid": run_id, "driver": driver, "pipeline": pipeline},
            {"step": step, "attempt": attempt, "takeover": takeover},
        )
        # Without an attempt (the plain contract) every try is one of its own, or its lines would pass for repeats.
        attempt_id = f"{attempt}.{takeover}" if attempt else token_hex(6)
        self._id = f"log.{run_id}.{step or driver}.{attempt_id}"
        self._writers: list[LineWriter] = []
        self._room = threading.Condition()
        self._thread = threading.get_ident()
        self._released = False
        self._dropped = 0
        self._seq = 0
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._wake = asyncio.Event()
        self._stored = asyncio.Event()
        self._stored.set()
        self._pump: asyncio.Task[None] | None = None

    # -- what drivers call ---------------------------------------------------------------------------------------

    def debug(self, message: str, **labels: object) -> None:
        """A line for whoever looks closely."""
        self._put(message, "debug", "", labels)

    def info(self, message: str, **labels: object) -> None:
        """A line about what is being done."""
        self._put(message, "info", "", labels)

    def warning(self, message: str, **labels: object) -> None:
        """A line about what is not as it should be, though the work goes on."""
        self._put(message, "warning", "", labels)

    def error(self, message: str, **labels: object) -> None:
        """A line about what went wrong."""
        self._put(message, "error", "", labels)

    def log(self, labels: Mapping[str, str], message: str) -> None:
        """Conveyor's form: labels first."""
        self._put(message, "info", "", labels)

    async def line(
        self, text: str, *, stream: Literal["stdout", "stderr", ""] = "stdout", level: Level = "info"
    ) -> None:
        """One line of a task's output. Waits while too many lines wait to be stored."""
        self._put(text, level, stream, {})
        while len(self._waiting) > _BACKLOG:
            self._stored.clear()
            await self._stored.wait()

    def redact(self, secret: str) -> None:
        """Mask `secret` in every later line."""
        self._lines.redact(secret)

    def handler(self, level: int = logging.NOTSET) -> logging.Handler:
        """A stdlib logging handler whose records become lines."""
        return LogHandler(self._put, level)

    def stream(self, name: Literal["stdout", "stderr"] = "stdout") -> LineWriter:
        """A text file whose lines become lines: for `print(..., file=...)`."""
        writer = LineWriter(lambda line: self._put(line, "info", name, {}))
        self._writers.append(writer)
        return writer

    # -- what the runtime calls ----------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Until every line so far is stored, also what a stream holds that has no line end yet."""
        for writer in self._writers:
            writer.close()
        while self._waiting:
            self._stored.clear()
            await self._stored.wait()

    def release(self) -> None:
        """The code that logs is being stopped: its threads wait for room no more, and lines without any are dropped."""
        with self._room:
            self._released = True
            self._room.notify_all()

    async def close(self) -> None:
        """Stop storing. Lines not stored by then are lost, so `flush` first."""
        self.release()
        if self._dropped:
            log.warning("%d lines that %s logged while it was being stopped were dropped", self._dropped, self._id)
        if self._pump:
            self._pump.cancel()
            await asyncio.wait({self._pump})

    def _put(self, text: str, level: str, stream: str, labels: Mapping[str, object]) -> None:
        pieces, named = self._lines.prepare(text, labels)
        for piece in pieces:
            with self._room:
                if threading.get_ident() != self._thread and not self._await_room():
                    self._dropped += 1
                    continue
                self._seq += 1
                self._waiting.append((self._seq, self._lines.encode(piece, level, stream, named, self._seq)))
        self._loop.call_soon_threadsafe(self._start)

    def _await_room(self) -> bool:
        """Wait until there is room, or for none any more; whether there is."""
        if len(self._waiting) >= _BACKLOG and not self._released:
            self._loop.call_soon_threadsafe(self._start)
            self._room.wait_for(lambda: len(self._waiting) < _BACKLOG or self._released)
        return len(self._waiting) < _BACKLOG

    def _start(self) -> None:
        self._wake.set()
        if self._pump is None:
            self._pump = asyncio.create_task(self._store_all(), name=f"logger:{self._id}")

    async def _store_all(self) -> None:
        """Store what waits, a chunk at a time, in order; a chunk that cannot be stored yet is kept."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                chunk = [self._waiting[index] for index in range(min(_CHUNK, len(self._waiting)))]
                try:
                    stored = await self._store_some(chunk)
                except BusUnavailable as error:
                    log.warning("%d log lines wait for the bus: %s", len(self._waiting), error)
                    await asyncio.sleep(0.5)
                    continue
                for _ in range(stored):
                    self._waiting.popleft()
                self._stored.set()
                with self._room:
                    self._room.notify_all()

    async def _store_some(self, chunk: list[tuple[int, bytes]]) -> int:
        """How many lines are dealt with: all, or the first one of a chunk that is refused for good. Better a line that
        says so than a log, and a result behind it, that never ends. Raises BusUnavailable."""
        try:
            await self._store(chunk)
        except BusUnavailable:
            raise
        except Exception as error:  # noqa: BLE001
            await self._replace(chunk[0], error)
            return 1
        return len(chunk)

    async def _store(self, chunk: list[tuple[int, bytes]]) -> None:
        await self._committer.commit([Message(self._subject, data, msg_id=f"{self._id}.{seq}") for seq, data in chunk])
        metrics.LOG_LINES.inc(len(chunk))
        for _, data in chunk:
            self._bus.publish_core(self._live, data)

    async def _replace(self, line: tuple[int, bytes], why: Exception) -> None:
        """Store the first line of a refused chunk alone, or else a note in its place."""
        seq, data = line
        log.error("log lines of %s are refused: %s", self._id, why)
        note = self._lines.encode(f"[a line of {len(data)} bytes could not be stored: {why}]", "error", "", {}, seq)
        for candidate in (data, note):
            try:
                await self._store([(seq, candidate)])
            except BusUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - the next candidate, or the line is lost, said above
                log.debug("refused alone, too: %s", error)
            else:
                return
