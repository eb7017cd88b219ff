"""What a driver process costs that has nothing to do, and how long `conveyor --help` takes.

    python -m tests.benchmarks.bench_idle [--seconds N] [--rounds N]

Requests are what the process publishes, counted on its way to the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import uvloop

from conveyor_runtime.bus import subjects
from conveyor_runtime.bus.consumers import consumer_info
from conveyor_runtime.bus.streams import MESSAGES
from tests.benchmarks import noop, report
from tests.benchmarks.harness import PYTHON, cpu, process, resident, server
from tests.benchmarks.throughput import DRIVER

_PUBLISHED = re.compile(rb"(?:^|\r\n)H?PUB ")

_SETTLE = 10.0
"""Seconds after its start until a process counts as idle."""


class Counter:
    """Passes connections on to a server and counts what is published over them."""

    def __init__(self, url: str) -> None:
        self.published = 0
        self._to = urlsplit(url)

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """The address to connect to instead."""
        listener = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        yield f"nats://{self._to.username}:{self._to.password}@127.0.0.1:{port}"
        listener.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onwards = await asyncio.open_connection(self._to.hostname, self._to.port)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(self._pass(reader, onwards, count=True), self._pass(there, writer, count=False))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool) -> None:
        while data := await reader.read(1 << 16):
            if count:
                self.published += len(_PUBLISHED.findall(data))
            writer.write(data)
        writer.close()


async def idle(seconds: float) -> None:
    """Watch a driver process that nobody gives anything to do."""
    async with server("always") as on:
        counter = Counter(on.url)
        async with counter.listening() as url, process(DRIVER, {"CONVEYOR_NATS_URL": url}) as pid:
            async with asyncio.timeout(60):
                while await consumer_info(on.bus, MESSAGES, subjects.driver_consumer(noop.NAME)) is None:
                    await asyncio.sleep(0.1)
            await asyncio.sleep(_SETTLE)
            published, used = counter.published, cpu(pid)
            await asyncio.sleep(seconds)
            of, rate, memory = f"{seconds:g} s", (counter.published - published) / seconds, resident(pid)
            share = (cpu(pid) - used) / seconds * 100
            report.row("idle", "always", of, {"requests/s": rate, "MB": memory, "CPU %": share})
            report.goal("idle", "always", of, "requests/s of an idle driver process", rate, most=1)
            report.goal("idle", "always", of, "resident MB of an idle driver process", memory, most=60)


def starts(rounds: int) -> None:
    """`conveyor --help` beside Python importing typer."""

    def took(*argv: str) -> float:
        began = time.perf_counter()
        subprocess.run([*argv], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    commands = ([*PYTHON, "conveyor_runtime", "--help"], [sys.executable, "-c", "import typer"])
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            times[which].append(took(*commands[which]))
    of = f"{rounds} starts each"
    help_ms, typer_ms = (statistics.median(found) * 1e3 for found in times)
    report.row("help", "", of, {"ms": help_ms, "import typer ms": typer_ms})
    ratio = statistics.median(ours / floor for ours, floor in zip(*times, strict=True))
    report.goal("help", "", of, "conveyor --help / import typer", ratio, most=1.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    starts(options.rounds)
    uvloop.run(idle(options.seconds))
