"""What waiting work costs: the price of an event with 1, 1,000 and 100,000 others behind it, and what a second process
brings.

    python -m tests.benchmarks.bench_backlog [--events N] [--rounds N] [--backlogs 1,1000,100000]

The backlog is kept at its length while `events` are worked off: as many are fed as results come in. All at `always`, on
the plain contract, which is the cheapest to feed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time

import uvloop

from conveyor_runtime.bus import Committer, Message, subjects
from conveyor_runtime.bus.streams import MESSAGES
from tests.benchmarks import backlog, noop, report
from tests.benchmarks.harness import Speed, cpu, process, server
from tests.benchmarks.throughput import DRIVER, ours

_IN_FLIGHT = 512
_FEED = 100
_WARM_UP = 1000


async def with_backlog(length: int, events: int) -> Speed:
    """The speed with `length` events waiting behind those in hand, all the time."""
    async with server("always") as on:
        waiting = backlog.Backlog(on.bus)
        await waiting.prepare()
        await waiting.plain(length + _IN_FLIGHT)
        await waiting.close()
        committer = Committer(on.bus, MESSAGES)
        done = fed = 0
        step = asyncio.Event()

        def arrived(message: object) -> None:
            nonlocal done
            done += 1
            step.set()

        unsubscribe = await on.bus.subscribe_core(subjects.RESULT, arrived)
        subject = subjects.step_dispatch(noop.NAME, noop.TYPE)
        data = [backlog.message(number) for number in range(events + _WARM_UP + _FEED)]
        began: tuple[int, float, float, float] | None = None
        async with process(DRIVER, {"CONVEYOR_NATS_URL": on.url}) as pid, asyncio.timeout(300):
            while began is None or done - began[0] < events:
                await step.wait()
                step.clear()
                if began is None and done >= _WARM_UP:
                    began = done, time.perf_counter(), cpu(pid), cpu(on.pid)
                while fed <= done - _FEED and fed + _FEED <= len(data):
                    unit = [Message(subject, it) for it in data[fed : fed + _FEED]]
                    await committer.commit(unit, timeout=60)
                    fed += _FEED
            count = done - began[0]
            speed = Speed(
                count / (time.perf_counter() - began[1]),
                (cpu(pid) - began[2]) / count * 1e3,
                (cpu(on.pid) - began[3]) / count * 1e3,
            )
        await unsubscribe()
        await committer.close()
        return speed


async def main(backlogs: list[int], events: int, rounds: int) -> None:
    measured: dict[int, list[Speed]] = {length: [] for length in backlogs}
    one: list[float] = []
    two: list[float] = []
    for number in range(rounds):
        for length in backlogs[:: -1 if number % 2 else 1]:
            measured[length].append(await with_backlog(length, events))
            print(f"  round {number + 1}: {length} waiting: {measured[length][-1]}", flush=True)
        one.append((await ours(events, "always", claims=True)).rate)
        two.append((await ours(events, "always", claims=True, processes=2)).rate)
        print(f"  round {number + 1}: one process {one[-1]:.0f}/s, two {two[-1]:.0f}/s", flush=True)
    for length, speeds in measured.items():
        figures = {
            "events/s": statistics.median(it.rate for it in speeds),
            "process ms/event": statistics.median(it.workers_ms for it in speeds),
            "server ms/event": statistics.median(it.server_ms for it in speeds),
        }
        report.row(f"backlog: {length} waiting", "always", figures)
    shortest = measured[backlogs[0]]
    for length in backlogs[1:]:
        pairs = list(zip(shortest, measured[length], strict=True))
        wall = statistics.median(few.rate / many.rate for few, many in pairs)
        report.goal("backlog", "always", f"cost of an event, {length} / {backlogs[0]} waiting", wall, most=1.1)
    gain = statistics.median(more / single for more, single in zip(two, one, strict=True))
    cores = len(os.sched_getaffinity(0))
    report.goal("two processes", "always", f"events/s, two driver processes / one, on {cores} cores", gain, least=1.6)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backlogs", default="1,1000,100000")
    options = parser.parse_args()
    uvloop.run(main([int(it) for it in options.backlogs.split(",")], options.events, options.rounds))
