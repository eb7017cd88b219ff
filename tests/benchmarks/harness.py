"""Servers and processes to measure, and how fast one of them works off a backlog."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from conveyor_runtime.bus import Bus, EmbeddedServer
from conveyor_runtime.bus.streams import ensure_streams, stream_info
from conveyor_runtime.kit.child import end_with_parent

PYTHON = [sys.executable, "-m"]

IN_FLIGHT = 512
"""What a process works on at once, ours and the peers'."""

WARM_UP = 2 * IN_FLIGHT
"""Events of a process before the clock is read: connections, imports and caches are warm then, and what is in flight
when it is read is no more than when it is read again."""


@dataclass(frozen=True)
class Server:
    """A nats-server with our streams on it."""

    url: str
    pid: int
    bus: Bus


@contextlib.asynccontextmanager
async def server(sync: str) -> AsyncIterator[Server]:
    """A fresh one, in a temporary directory, with its syncs as said."""
    with tempfile.TemporaryDirectory(prefix="cv-bench-") as folder:
        embedded = EmbeddedServer(Path(folder), sync=sync)
        await embedded.start()
        bus = await Bus.connect(embedded.url, name="bench")
        try:
            await ensure_streams(bus)
            assert embedded.pid is not None
            yield Server(embedded.url, embedded.pid, bus)
        finally:
            await bus.close()
            await embedded.stop()


@contextlib.asynccontextmanager
async def process(argv: Sequence[str], env: Mapping[str, str]) -> AsyncIterator[int]:
    """A process for the length of the block, or of a benchmark that is killed; its pid."""
    child = await asyncio.create_subprocess_exec(*argv, env={**os.environ, **env}, preexec_fn=end_with_parent())
    try:
        yield child.pid
        assert child.returncode is None, f"{' '.join(argv)} ended by itself: {child.returncode}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        await child.wait()


def cpu(pid: int) -> float:
    """CPU seconds of a process and its children so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(cpu(int(child)) for child in children)


def resident(pid: int) -> float:
    """Megabytes of memory a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@dataclass(frozen=True)
class Speed:
    """How fast a backlog was worked off. CPU in milliseconds for an event."""

    rate: float
    workers_ms: float
    server_ms: float


async def work_off(
    on: Server, stream: str, warm_up: int, count: int, workers: Sequence[int], *, patience: float = 120.0
) -> Speed:
    """Watch the results come in until there are `count` of them in `stream` after the first `warm_up`."""

    def used() -> tuple[float, float, float]:
        return time.perf_counter(), sum(map(cpu, workers)), cpu(on.pid)

    first: tuple[int, tuple[float, float, float]] | None = None
    async with asyncio.timeout(patience):
        while True:
            info = await stream_info(on.bus, stream)
            done = int(info["state"]["messages"]) if info else 0
            now = used()
            if first is None and done >= warm_up:
                first = done, now
            if first is not None and done >= warm_up + count:
                began, (wall, theirs, servers) = first
                events = done - began
                return Speed(
                    events / (now[0] - wall), (now[1] - theirs) / events * 1e3, (now[2] - servers) / events * 1e3
                )
            await asyncio.sleep(0.01)
