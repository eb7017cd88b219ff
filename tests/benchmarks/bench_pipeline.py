"""A four-step no-op pipeline from POST to the end of its run: latency one at a time, runs per second with 16 in flight.

    python -m tests.benchmarks.bench_pipeline [--sync always|2m ...] [--runs N]

Everything runs as users run it: `conveyor serve` with its embedded nats-server, four `conveyor driver run` processes,
one client over HTTP. A run counts as ended when its record is stored as ended, read from the state's own stream.
The floor is what JetStream takes for the writes a run needs, one after another: 2 for the POST, 4 for each step.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop

from conveyor_runtime import Driver, DriverResult
from conveyor_runtime.bus import Bus, Tail
from tests.benchmarks import report
from tests.support.processes import CONVEYOR

STEPS = ("first", "second", "third", "fourth")
_ENDED = re.compile(rb'"status":"(Succeeded|Failed|Error|TimedOut|Cancelled)"')


async def nothing(payload: str, event: str, run_id: str, logger: Any) -> DriverResult:
    """The reconcile of all four drivers."""
    return DriverResult(success=True, message="done")


first, second, third, fourth = (Driver(name, ("noop",), nothing, direct=False) for name in STEPS)


class Http:
    """One keep-alive connection; a client library would be the bottleneck."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, url: str) -> Http:
        host, port = url.removeprefix("http://").split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and body of the answer."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", answer)
        return int(answer[9:12]), await self._reader.readexactly(int(length[1]) if length else 0)

    def close(self) -> None:
        self._writer.close()


class Ends:
    """Tells when runs have ended, by their stored records."""

    def __init__(self, bus: Bus) -> None:
        self._tail = Tail(bus, "KV_cv-state", "$KV.cv-state.run.>", last_per_subject=True)
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for message in self._tail:
            found = _ENDED.search(message.data)
            if found is not None:
                future = self.of(message.subject.rsplit(".", 1)[1])
                if not future.done():
                    future.set_result(found[1])

    def of(self, run_id: str) -> asyncio.Future[bytes]:
        """Done once the run has ended; the status."""
        return self._waiting.setdefault(run_id, asyncio.get_running_loop().create_future())

    async def close(self) -> None:
        self._task.cancel()
        await self._tail.aclose()


@contextlib.asynccontextmanager
async def runtime(sync: str, drivers: tuple[str, ...] = STEPS) -> AsyncIterator[dict[str, Any]]:
    """`serve` and a process per driver; the content of its ready file, and the pids."""
    with tempfile.TemporaryDirectory(prefix="cv-bench-") as folder:
        ready = Path(folder, "ready.json")
        common = ["--log-level", "warning"]
        serve = [*CONVEYOR, "serve", "--data", f"{folder}/data", "--api-port", "0", "--sync", sync]
        processes = [await asyncio.create_subprocess_exec(*serve, "--ready-file", str(ready), *common)]
        try:
            while not ready.exists():
                await asyncio.sleep(0.05)
            where = json.loads(ready.read_text())
            env = {**os.environ, "CONVEYOR_NATS_URL": where["nats"], "CONVEYOR_BACKEND": "native"}
            for name in drivers:
                run = [*CONVEYOR, "driver", "run", f"tests.benchmarks.bench_pipeline:{name}", "--concurrency", "512"]
                processes.append(await asyncio.create_subprocess_exec(*run, *common, env=env))
            named = zip(("serve", *drivers), processes, strict=True)
            pids = {name: process.pid for name, process in named}
            yield {**where, "pids": pids | {"nats": child_of(pids["serve"])}}
        finally:
            for process in reversed(processes):
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()


def child_of(pid: int) -> int:
    """The nats-server of `serve`."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def cpu(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def define(http: Http) -> None:
    """The type and the pipeline, and wait until all drivers are there."""
    assert (await http.request("POST", "/resource-definitions", {"name": "noop", "schema": {"type": "object"}}))[
        0
    ] < 300
    steps = [{"id": name, "name": name, "driver": name} for name in STEPS]
    status, said = await http.request("POST", "/pipelines", {"name": "noop", "resource": "noop", "steps": steps})
    assert status == 201, said
    while len(json.loads((await http.request("GET", "/drivers"))[1]).get("items", [])) < len(STEPS):
        await asyncio.sleep(0.1)


async def round_trip(url: str) -> float:
    """Median seconds of one stored publish."""
    bus = await Bus.connect(url, name="floor")
    took = []
    for _ in range(200):
        began = time.perf_counter()
        await bus.publish("logs.floor", b"x" * 600)
        took.append(time.perf_counter() - began)
    await bus.close()
    return statistics.median(took)


async def post(http: Http, name: str) -> str:
    spec = {"repository": "somewhere", "number": 1}
    body = {"name": name, "resource": "noop", "pipeline": "noop", "spec": spec}
    status, said = await http.request("POST", "/resources", body)
    assert status == 201, said
    return str(json.loads(said)["runid"])


async def measure(sync: str, runs: int, stay: float) -> None:
    async with runtime(sync) as where:
        bus = await Bus.connect(where["nats"], name="bench")
        ends = Ends(bus)
        http = await Http.connect(where["api"])
        await define(http)
        await ends.of(await post(http, "warm-up"))
        rtt = await round_trip(where["nats"])
        took = []
        for number in range(max(runs // 4, 20)):
            began = time.perf_counter()
            assert await ends.of(await post(http, f"one-{number}")) == b"Succeeded"
            took.append(time.perf_counter() - began)
        p50, p99 = statistics.median(took), sorted(took)[int(len(took) * 0.99)]
        floor = rtt * (2 + 4 * len(STEPS))
        clients = [await Http.connect(where["api"]) for _ in range(16)]
        numbers = iter(range(runs))

        async def worker(client: Http, *, wait: bool, prefix: str) -> None:
            for number in numbers:
                run_id = await post(client, f"{prefix}-{number}")
                if wait:
                    assert await ends.of(run_id) == b"Succeeded"

        began, before = time.perf_counter(), {name: cpu(pid) for name, pid in where["pids"].items()}
        await asyncio.gather(*(worker(client, wait=True, prefix="many") for client in clients))
        rate = runs / (time.perf_counter() - began)
        used = {f"{name} ms/run": (cpu(pid) - before[name]) / runs * 1e3 for name, pid in where["pids"].items()}
        report.row(
            "pipeline",
            sync,
            {"p50 ms": p50 * 1e3, "p99 ms": p99 * 1e3, "p50 / round trips": p50 / floor, "runs/s (16)": rate, **used},
        )
        if stay:
            print(where, flush=True)
            numbers = iter(range(10**9))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(stay):
                    await asyncio.gather(*(worker(client, wait=True, prefix="stay") for client in clients))
            clients = []
        numbers = iter(range(runs))
        began = time.perf_counter()
        if not stay:
            await asyncio.gather(*(worker(client, wait=False, prefix="post") for client in clients))
            report.row("POST", sync, {"POST/s (16)": runs / (time.perf_counter() - began)})
        for client in (http, *clients):
            client.close()
        await ends.close()
        await bus.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sync", nargs="*", default=["always", "2m"])
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--stay", type=float, default=0.0, help="seconds to go on with 16 in flight, to profile it")
    options = parser.parse_args()
    for sync in options.sync:
        uvloop.run(measure(sync, options.runs, options.stay))


if __name__ == "__main__":
    main()
