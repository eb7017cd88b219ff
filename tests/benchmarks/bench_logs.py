"""Log lines: from a reconcile to stored, from there to a follower, and what a million of them leaves in memory.

    python -m tests.benchmarks.bench_logs [--lines N] [--rounds N] [--long N]

The lines are those of one run at `always`, under `conveyor serve` and a driver process. The floor is nats-py publishing
the same bytes with as many unanswered as it allows by default (4000), at the server's default interval. Both are
counted as they are stored, from the same line on. `--long` is how many lines the memory is measured with, while a
follower reads along.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import uvloop

from conveyor_runtime.bus import Bus
from conveyor_runtime.bus.messages import next_by_subject
from conveyor_runtime.bus.streams import LOGS
from tests.benchmarks import chatty, peers, report
from tests.benchmarks.harness import PYTHON, Server, process, resident, server, work_off
from tests.benchmarks.throughput import DEFAULT
from tests.benchmarks.whole import Ends, Http, runtime

_DRIVER = [*PYTHON, "conveyor_runtime", "driver", "run", "tests.benchmarks.chatty:driver"]
_DRIVER += ["--log-level", "warning", "--backend", "native"]

_LENGTH = 100
"""Characters of a line, after its time."""

_WARM_UP = 10_000
"""Lines before the clock is read: more than either has unanswered at once."""

_RATE = 5_000
"""Lines per second while a follower's lag is measured."""


class Place:
    """A runtime with a driver that logs."""

    def __init__(self, where: dict[str, Any], http: Http, bus: Bus, ends: Ends) -> None:
        self.where, self.http, self.bus, self.ends = where, http, bus, ends
        self.server = Server(where["nats"], where["pids"]["nats"], bus)
        self._number = 0

    async def talk(self, lines: int, rate: float = 0) -> str:
        """Begin a run that logs; its id."""
        self._number += 1
        spec = {"lines": lines, "rate": rate, "length": _LENGTH}
        body = {"name": f"r{self._number}", "resource": chatty.NAME, "pipeline": chatty.NAME, "spec": spec}
        status, said = await self.http.request("POST", "/resources", body)
        assert status == 201, said
        return str(json.loads(said)["runid"])

    async def stored(self, lines: int, *, followed: bool = False) -> float:
        """Lines per second of one run, from reconcile to stored, after the warm-up."""
        await self.bus.api(f"STREAM.PURGE.{LOGS}", timeout=60)
        run_id = await self.talk(_WARM_UP + lines)
        follower = asyncio.create_task(self.follow(run_id, _WARM_UP + lines)) if followed else None
        pids = [self.where["pids"]["driver"]]
        speed = await work_off(self.server, LOGS, _WARM_UP, lines, pids, patience=1200)
        assert await self.ends.of(run_id) == b"Succeeded"
        if follower:
            await follower
        return speed.rate

    async def lags(self, seconds: float) -> list[float]:
        """Seconds from the call that logs a line to the follower that reads it, sorted, but for the first second."""
        lines = round(seconds * _RATE)
        return sorted((await self.follow(await self.talk(lines, _RATE), lines))[_RATE:])

    async def follow(self, run_id: str, lines: int) -> list[float]:
        """How old each line was when it came, in seconds."""
        host, port = self.where["api"].removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
        writer.write(f"GET /logs/{run_id} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n".encode())
        lags: list[float] = []
        while len(lags) < lines:
            line = await reader.readline()
            assert line, f"the stream ended after {len(lags)} lines"
            if line.startswith(b"data:") and (said := orjson.loads(line[5:]).get("message", "")).endswith("x"):
                lags.append(time.time() - float(said.split()[0]))
        writer.close()
        return lags


@contextlib.asynccontextmanager
async def place() -> AsyncIterator[Place]:
    async with runtime("always", {}) as where:
        bus = await Bus.connect(where["nats"], name="bench")
        ends, http = Ends(bus), await Http.connect(where["api"])
        definition = {"name": chatty.NAME, "schema": {"type": "object"}}
        await http.request("POST", "/resource-definitions", definition)
        steps = [{"id": "only", "name": "only", "driver": chatty.NAME}]
        said = await http.request("POST", "/pipelines", {"name": chatty.NAME, "resource": chatty.NAME, "steps": steps})
        assert said[0] == 201, said
        async with process(_DRIVER, {"CONVEYOR_NATS_URL": where["nats"]}) as pid:
            where["pids"]["driver"] = pid
            here = Place(where, http, bus, ends)
            assert await ends.of(await here.talk(100)) == b"Succeeded"
            yield here
        http.close()
        await ends.close()
        await bus.close()


async def raw(lines: int, data: bytes) -> float:
    """Lines per second that nats-py stores by itself, after the warm-up."""
    async with server(DEFAULT) as on:
        env = {**peers.env(on.url), "BENCH_LINE": data.decode(), "BENCH_LINES": str(_WARM_UP + lines)}
        async with process([*PYTHON, "tests.benchmarks.peer_lines"], env) as pid:
            return (await work_off(on, LOGS, _WARM_UP, lines, [pid])).rate


async def one_line(bus: Bus) -> bytes:
    """A line as it is stored."""
    found = await next_by_subject(bus, LOGS, "logs.>", 1)
    assert found is not None
    return found.data


async def main(lines: int, rounds: int, long: int) -> None:
    ours, floors, lags = [], [], []
    async with place() as here:
        line = await one_line(here.bus)
        for number in range(rounds):
            ours.append(await here.stored(lines))
            floors.append(await raw(lines, line))
            lags.append(await here.lags(4))
            p99 = lags[-1][int(len(lags[-1]) * 0.99)]
            print(f"  round {number + 1}: ours {ours[-1]:.0f}/s, raw {floors[-1]:.0f}/s, lag p99 {p99 * 1e3:.1f} ms")
        p50, p99 = (statistics.median(it[int(len(it) * part)] for it in lags) for part in (0.5, 0.99))
        of = f"{rounds} x {lines} lines"
        report.row("logs", "always", of, {"lines/s": statistics.median(ours), "bytes": len(line)})
        report.row("logs: raw", DEFAULT, of, {"lines/s": statistics.median(floors)})
        ratio = statistics.median(our / floor for our, floor in zip(ours, floors, strict=True))
        what = "lines/s, reconcile to stored / raw async publish"
        report.goal("logs", f"always / {DEFAULT}", of, what, ratio, least=0.5)
        of = f"{rounds} x {len(lags[0])} lines"
        report.row("logs: follower", "always", of, {"lag p50 ms": p50 * 1e3, "lag p99 ms": p99 * 1e3})
        report.goal("logs: follower", "always", of, f"lag p99 at {_RATE} lines/s, ms", p99 * 1e3, most=50)
        before = {name: resident(pid) for name, pid in here.where["pids"].items()}
        rate = await here.stored(long, followed=True)
        grown = {name: resident(pid) - before[name] for name, pid in here.where["pids"].items()}
        of, figures = f"{long} lines", {f"{name} MB": mb for name, mb in grown.items()}
        report.row("logs: memory", "always", of, {"lines/s": rate, **figures})
        report.goal("logs: memory", "always", of, "growth of a process, MB", max(grown.values()), most=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", type=int, default=1_000_000)
    options = parser.parse_args()
    uvloop.run(main(options.lines, options.rounds, options.long))
