"""A four-step no-op pipeline from POST to the end of its run: latency one at a time, runs per second with 16 in flight.

    python -m tests.benchmarks.bench_pipeline [--sync always|2m ...] [--singles N] [--runs N] [--events N]

Everything runs as users run it: `conveyor serve` with its embedded nats-server, four `conveyor driver run` processes,
one client over HTTP. A run counts as ended when its record is stored as ended, read from the state's own stream.
The floor is what JetStream takes for the writes a run needs, one after another: 2 for the POST, 4 for each step. Beside
it stands FastStream, where it is installed: how many single events it works off at the server's default interval.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop

from conveyor_runtime import Driver, DriverResult
from conveyor_runtime.bus import Bus
from tests.benchmarks import peers, report
from tests.benchmarks.throughput import DEFAULT, theirs
from tests.benchmarks.whole import Ends, Http, runtime

STEPS = ("first", "second", "third", "fourth")
IN_FLIGHT = 16
"""How many clients post at once."""

PER_EVENT = {"always": 1.1 * 0.2 / 1.5, "2m": 0.2}
"""Least runs per second for each single event per second of FastStream, by the server's sync interval."""


async def nothing(payload: str, event: str, run_id: str, logger: Any) -> DriverResult:
    """The reconcile of all four drivers."""
    return DriverResult(success=True, message="done")


first, second, third, fourth = (Driver(name, ("noop",), nothing, direct=False) for name in STEPS)


def cpu(pid: int) -> float:
    """CPU seconds of a process so far, without its children."""
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


class Load:
    """Clients that post runs: one, or as many as are in flight at once."""

    def __init__(self, where: dict[str, Any], ends: Ends, http: Http, clients: list[Http]) -> None:
        self.http = http
        self.clients = clients
        self.posted: list[str] = []
        self._where, self._ends = where, ends

    async def one_by_one(self, runs: int) -> list[float]:
        """Seconds from each POST to the end of its run, sorted."""
        took = []
        for number in range(runs):
            began = time.perf_counter()
            await self._post(self.http, f"one-{number}", wait=True)
            took.append(time.perf_counter() - began)
        return sorted(took)

    async def at_once(self, runs: int, prefix: str, *, wait: bool) -> float:
        """Runs per second, or POSTs where nobody waits for the end, after a warm-up."""
        await self._all(4 * IN_FLIGHT, f"{prefix}-warm-up", wait=wait)
        began = time.perf_counter()
        await self._all(runs, prefix, wait=wait)
        return runs / (time.perf_counter() - began)

    async def _all(self, runs: int, prefix: str, *, wait: bool) -> None:
        numbers = iter(range(runs))

        async def work(client: Http) -> None:
            for number in numbers:
                await self._post(client, f"{prefix}-{number}", wait=wait)

        await asyncio.gather(*map(work, self.clients))

    async def _post(self, client: Http, name: str, *, wait: bool) -> None:
        run_id = await post(client, name)
        self.posted.append(run_id)
        if wait:
            assert await self._ends.of(run_id) == b"Succeeded"

    async def lost(self) -> int:
        """How many of all runs posted have not succeeded, waiting up to a minute for each."""
        found = await asyncio.gather(
            *(asyncio.wait_for(self._ends.of(run_id), 60) for run_id in self.posted), return_exceptions=True
        )
        return sum(status != b"Succeeded" for status in found)


@contextlib.asynccontextmanager
async def load(sync: str) -> AsyncIterator[tuple[dict[str, Any], Load]]:
    """A runtime whose drivers are there, and its clients."""
    drivers = {name: f"tests.benchmarks.bench_pipeline:{name}" for name in STEPS}
    async with runtime(sync, drivers) as where:
        bus = await Bus.connect(where["nats"], name="bench")
        ends, http = Ends(bus), await Http.connect(where["api"])
        await define(http)
        await ends.of(await post(http, "warm-up"))
        clients = [await Http.connect(where["api"]) for _ in range(IN_FLIGHT)]
        yield where, Load(where, ends, http, clients)
        for client in (http, *clients):
            client.close()
        await ends.close()
        await bus.close()


async def measure(sync: str, singles: int, runs: int, faststream: float) -> None:
    """One setting, with what FastStream did right before, in events per second; 0 if it is not there."""
    async with load(sync) as (where, clients):
        rtt = await round_trip(where["nats"])
        took = await clients.one_by_one(singles)
        p50, p99 = statistics.median(took), took[int(len(took) * 0.99)]
        ratio = p50 / (rtt * (2 + 4 * len(STEPS)))
        of = f"{singles} runs one by one"
        report.row("pipeline", sync, of, {"p50 ms": p50 * 1e3, "p99 ms": p99 * 1e3, "p50 / round trips": ratio})
        report.goal("pipeline", sync, of, "p50 / round trips", ratio, most=2)
        before = {name: cpu(pid) for name, pid in where["pids"].items()}
        rate = await clients.at_once(runs, "many", wait=True)
        spent = {name: cpu(pid) - before[name] for name, pid in where["pids"].items()}
        used = {f"{name} ms/run": seconds / (runs + 4 * IN_FLIGHT) * 1e3 for name, seconds in spent.items()}
        of = f"{runs} runs, {IN_FLIGHT} at once"
        report.row("pipeline", sync, of, {"runs/s": rate, **used})
        if faststream:
            name = "runs/s / events/s of FastStream at its default"
            report.goal("pipeline", sync, of, name, rate / faststream, least=PER_EVENT[sync])
        posts = await clients.at_once(runs, "post", wait=False)
        of = f"{runs} POSTs, {IN_FLIGHT} at once"
        report.row("POST", sync, of, {"POST/s": posts})
        report.goal("POST", sync, of, "POST/s", posts, least=1500)
        lost = await clients.lost()
        report.goal("pipeline", sync, f"all {len(clients.posted)} runs", "runs that did not succeed", lost, most=0)


async def stay(sync: str, seconds: float) -> None:
    """Go on for so long, to profile it."""
    async with load(sync) as (where, clients):
        print(where, flush=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await clients.at_once(10**9, "stay", wait=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sync", nargs="*", choices=list(PER_EVENT), default=list(PER_EVENT))
    parser.add_argument("--singles", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=2_000)
    parser.add_argument("--events", type=int, default=10_000, help="events of FastStream")
    parser.add_argument("--stay", type=float, default=0.0, help="seconds to go on with many in flight, to profile it")
    options = parser.parse_args()
    for sync in options.sync:
        if options.stay:
            uvloop.run(stay(sync, options.stay))
            continue
        faststream = 0.0
        if peers.FASTSTREAM.there:
            faststream = uvloop.run(theirs(options.events, DEFAULT, peers.FASTSTREAM)).rate
            report.row("pipeline: FastStream", DEFAULT, f"{options.events} events", {"events/s": faststream})
        uvloop.run(measure(sync, options.singles, options.runs, faststream))


if __name__ == "__main__":
    main()
