"""What waiting work costs: the price of an event with 1, 1,000 and 100,000 others behind it, and what a second process
brings.

    python -m tests.benchmarks.bench_backlog [--events N] [--rounds N] [--backlogs 1,1000,100000]

The backlog is kept at its length while `events` are worked off: as many are fed as results come in. All at `always`,
with a claim for each event (`runs`) and without (`plain`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time

import uvloop

from conveyor_runtime.bus import subjects
from tests.benchmarks import backlog, report
from tests.benchmarks.harness import IN_FLIGHT, WARM_UP, Speed, cpu, process, server
from tests.benchmarks.throughput import DRIVER, ours

_FEED = 100


async def with_backlog(length: int, events: int, *, claims: bool) -> Speed:
    """The speed with `length` events waiting behind those in hand, all the time."""
    async with server("always") as on:
        waiting = backlog.Backlog(on.bus)
        await waiting.prepare()
        feed = waiting.runs if claims else waiting.plain
        await feed(length + IN_FLIGHT)
        done = fed = 0
        step = asyncio.Event()

        def arrived(message: object) -> None:
            nonlocal done
            done += 1
            step.set()

        unsubscribe = await on.bus.subscribe_core(subjects.RESULT, arrived)
        began: tuple[int, float, float, float] | None = None
        async with process(DRIVER, {"CONVEYOR_NATS_URL": on.url}) as pid, asyncio.timeout(300):
            while began is None or done - began[0] < events:
                await step.wait()
                step.clear()
                if began is None and done >= WARM_UP:
                    began = done, time.perf_counter(), cpu(pid), cpu(on.pid)
                while fed <= done - _FEED:
                    await feed(_FEED)
                    fed += _FEED
            count = done - began[0]
            speed = Speed(
                count / (time.perf_counter() - began[1]),
                (cpu(pid) - began[2]) / count * 1e3,
                (cpu(on.pid) - began[3]) / count * 1e3,
            )
        await unsubscribe()
        await waiting.close()
        return speed


async def main(backlogs: list[int], events: int, rounds: int) -> None:
    settings = [(path, length) for path in ("runs", "plain") for length in backlogs]
    measured: dict[tuple[str, int], list[Speed]] = {setting: [] for setting in settings}
    one: list[float] = []
    two: list[float] = []
    for number in range(rounds):
        for path, length in settings[:: -1 if number % 2 else 1]:
            found = measured[path, length]
            found.append(await with_backlog(length, events, claims=path == "runs"))
            print(f"  round {number + 1}: {path}, {length} waiting: {found[-1]}", flush=True)
        one.append((await ours(events, "always", claims=True)).rate)
        two.append((await ours(events, "always", claims=True, processes=2)).rate)
        print(f"  round {number + 1}: one process {one[-1]:.0f}/s, two {two[-1]:.0f}/s", flush=True)
    of = f"{rounds} x {events} events"
    for (path, length), speeds in measured.items():
        figures = {
            "events/s": statistics.median(it.rate for it in speeds),
            "process ms/event": statistics.median(it.workers_ms for it in speeds),
            "server ms/event": statistics.median(it.server_ms for it in speeds),
        }
        report.row(f"backlog: {path}, {length} waiting", "always", of, figures)
    for path, length in settings:
        if length == backlogs[0]:
            continue
        pairs = zip(measured[path, backlogs[0]], measured[path, length], strict=True)
        wall = statistics.median(few.rate / many.rate for few, many in pairs)
        what = f"cost of an event of {path}, {length} / {backlogs[0]} waiting"
        report.goal("backlog", "always", of, what, wall, most=1.1)
    gain = statistics.median(more / single for more, single in zip(two, one, strict=True))
    cores = len(os.sched_getaffinity(0))
    what = f"events/s, two driver processes / one, on {cores} cores"
    report.row("two processes", "always", of, {"one events/s": statistics.median(one), "two": statistics.median(two)})
    report.goal("two processes", "always", of, what, gain, least=1.6)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backlogs", default="1,1000,100000")
    options = parser.parse_args()
    uvloop.run(main([int(it) for it in options.backlogs.split(",")], options.events, options.rounds))
