"""The HTTP API: POST and GET of resources at 32 connections, and pages of a list of runs as it grows.

    python -m tests.benchmarks.bench_api [--requests N] [--runs N]

One `conveyor serve` with its embedded server at `always`, and no drivers, so that nothing but the API and the engine's
share of a POST is measured. The client is a process of its own, with bare connections.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from datetime import timedelta

import uuid_utils
import uvloop

from conveyor_runtime.bus import Bus, Committer
from conveyor_runtime.bus.streams import STATE
from conveyor_runtime.models import PlannedStep, RunRecord, Status, StepState, utc_now
from conveyor_runtime.store import KvStore, Put, State, keys
from tests.benchmarks import report
from tests.benchmarks.harness import cpu
from tests.benchmarks.whole import Http, runtime

CONNECTIONS = 32
TYPE = "bench"
_FEW = 1_000
_PAGES = 300


async def requests(api: str, count: int, method: str) -> tuple[float, list[float]]:
    """Requests per second of all connections after a warm-up, and the seconds each took, sorted."""
    clients = [await Http.connect(api) for _ in range(CONNECTIONS)]

    async def work(client: Http, numbers: Iterator[int], took: list[float]) -> None:
        for number in numbers:
            name = f"r{number}"
            body = {"name": name, "resource": TYPE, "pipeline": TYPE, "spec": {"repository": "somewhere"}}
            began = time.perf_counter()
            if method == "POST":
                status, said = await client.request("POST", "/resources", body)
            else:
                status, said = await client.request("GET", f"/resources/{TYPE}/{name}")
            took.append(time.perf_counter() - began)
            assert status < 300, said

    async def all_of(numbers: Iterator[int]) -> list[float]:
        took: list[float] = []
        await asyncio.gather(*(work(client, numbers, took) for client in clients))
        return sorted(took)

    await all_of(iter(range(count, count + 4 * CONNECTIONS)))
    began = time.perf_counter()
    took = await all_of(iter(range(count)))
    rate = count / (time.perf_counter() - began)
    for client in clients:
        client.close()
    return rate, took


async def pages(http: Http, query: str = "") -> list[float]:
    """Seconds each page of 50 took, walking back from the newest, sorted."""
    took, cursor = [], ""
    for _ in range(_PAGES):
        began = time.perf_counter()
        status, said = await http.request("GET", f"/runs?limit=50{query}&cursor={cursor}")
        took.append(time.perf_counter() - began)
        assert status == 200, said
        cursor = json.loads(said).get("next_cursor") or ""
    return sorted(took)


async def add_runs(bus: Bus, count: int) -> str:
    """Ended runs, written as the engine leaves them; the last one's id."""
    committer = Committer(bus, STATE)
    state = State(KvStore(bus, committer))
    for start in range(0, count, 500):
        runs = [_ended() for _ in range(start, min(start + 500, count))]
        await state.commit(*(Put(keys.run(run.run_id), run, 0) for run in runs), timeout=60)
    await committer.close()
    return runs[-1].run_id


def _ended() -> RunRecord:
    now = utc_now()
    step = StepState(
        status=Status.SUCCEEDED,
        attempt=1,
        issue=1,
        issued_at=now,
        instance="bench",
        started_at=now,
        finished_at=now + timedelta(seconds=1),
    )
    return RunRecord(
        run_id=str(uuid_utils.uuid7()),
        type=TYPE,
        name="ended",
        event="create",
        generation=1,
        status=Status.SUCCEEDED,
        pipeline=TYPE,
        plan=(PlannedStep(id="only", driver=TYPE),),
        steps={"only": step},
        created_at=now,
        finished_at=now + timedelta(seconds=1),
    )


async def listed(http: Http, run_id: str) -> None:
    """Until the API knows the run: its view follows the store."""
    async with asyncio.timeout(120):
        while run_id.encode() not in (await http.request("GET", "/runs?limit=1"))[1]:
            await asyncio.sleep(0.2)


async def main(count: int, runs: int) -> None:
    async with runtime("always", {}) as where:
        http = await Http.connect(where["api"])
        bus = await Bus.connect(where["nats"], name="bench")
        await http.request("POST", "/resource-definitions", {"name": TYPE, "schema": {"type": "object"}})
        steps = [{"id": "only", "name": "only", "driver": TYPE}]
        status, said = await http.request("POST", "/pipelines", {"name": TYPE, "resource": TYPE, "steps": steps})
        assert status == 201, said
        http.close()
        for method in ("POST", "GET"):
            before = cpu(where["pids"]["serve"])
            rate, took = await requests(where["api"], count, method)
            figures = {
                f"{method}/s": rate,
                "p50 ms": statistics.median(took) * 1e3,
                "p99 ms": took[int(len(took) * 0.99)] * 1e3,
                "serve ms/request": (cpu(where["pids"]["serve"]) - before) / count * 1e3,
            }
            report.row(f"api: {method}", "always", f"{count} requests", figures)
        at: dict[int, tuple[float, float]] = {}
        for total, more in ((_FEW, _FEW), (runs, runs - _FEW)):
            newest = await add_runs(bus, more)
            http = await Http.connect(where["api"])  # the server closes those that say nothing for 5 s
            await listed(http, newest)
            for query in ("", "&status=Succeeded", f"&type={TYPE}&name=ended&pipeline={TYPE}", "&status=Failed"):
                before = cpu(where["pids"]["serve"])
                took = await pages(http, query)
                spent, p99 = (cpu(where["pids"]["serve"]) - before) / _PAGES, took[int(len(took) * 0.99)]
                at.setdefault(total, (spent, p99))
                figures = {"p50 ms": statistics.median(took) * 1e3, "p99 ms": p99 * 1e3, "serve ms/page": spent * 1e3}
                report.row(f"api: page of {total} runs{query}", "always", f"{_PAGES} pages", figures)
            http.close()
        of = f"{_PAGES} pages"
        report.goal("api: list", "always", of, f"p99 of a page of {runs} runs, ms", at[runs][1] * 1e3, most=20)
        growth = at[runs][0] / at[_FEW][0]
        report.goal("api: list", "always", of, f"CPU of a page, {runs} / {_FEW} runs", growth, most=1.2)
        await bus.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=6_000)
    parser.add_argument("--runs", type=int, default=100_000)
    options = parser.parse_args()
    uvloop.run(main(options.requests, options.runs))
