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
            rate, memory = (counter.published - published) / seconds, resident(pid)
            report.row("idle", "always", {"requests/s": rate, "MB": memory, "CPU %": (cpu(pid) - used) / seconds * 100})
            report.goal("idle", "always", "requests/s of an idle driver process", rate, most=1)
            report.goal("idle", "always", "resident MB of an idle driver process", memory, most=60)


def starts(rounds: int) -> None:
    """`conveyor --help` beside Python importing typer."""

    def took(*argv: str) -> float:
        began = time.perf_counter()
        subprocess.run([*argv], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    ours, floors = [], []
    for _ in range(rounds):
        ours.append(took(*PYTHON, "conveyor_runtime", "--help"))
        floors.append(took(sys.executable, "-c", "import typer"))
    report.row("help", "", {"ms": statistics.median(ours) * 1e3, "import typer ms": statistics.median(floors) * 1e3})
    # The quickest of many is what the work itself takes; anything above is the machine's doing.
    report.goal("help", "", "conveyor --help / import typer", min(ours) / min(floors), most=1.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    starts(options.rounds)
    uvloop.run(idle(options.seconds))
