"""From an event to its reconcile, at half of what one process can do, beside the plain loop at half of what that can.

    python -m tests.benchmarks.bench_latency [--seconds N] [--rounds N]

The clock starts when the event is given to the committer that stores it (ours as the engine's does, in groups; the
loop's likewise), and stops when user code is called. Both at `always`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import orjson
import uvloop

from conveyor_runtime.bus import Committer, Message, subjects
from conveyor_runtime.bus.streams import MESSAGES
from tests.benchmarks import backlog, noop, peers, report
from tests.benchmarks.harness import Server, process, server
from tests.benchmarks.throughput import DRIVER, ours, theirs

EVENTS = 6_000
"""How many are worked off to learn what half of the load is."""

_TICK = 0.002

_WARM_UP = 200


@dataclass(frozen=True)
class Latency:
    """Seconds from event to reconcile."""

    p50: float
    p99: float


async def latency(on: Server, stream: str, subject: str, results: str, rate: float, seconds: float) -> Latency:
    """Feed `rate` events per second for so long, once the process has shown that it is at work."""
    sent: dict[str, float] = {}
    took: list[float] = []
    committer = Committer(on.bus, stream)

    def arrived(message: object) -> None:
        result = orjson.loads(message.data)  # type: ignore[attr-defined]
        took.append(result["driverresult"]["data"]["at"] - sent[result["run_id"]])

    async def send(number: int) -> None:
        data = backlog.message(number, run_id=f"r{number}")
        sent[f"r{number}"] = time.monotonic()
        await committer.commit([Message(subject, data)], timeout=60)

    unsubscribe = await on.bus.subscribe_core(results, arrived)
    await asyncio.gather(*map(send, range(_WARM_UP)))
    await _until(lambda: len(took) == _WARM_UP)
    tasks: set[asyncio.Task[None]] = set()
    began, number = time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < seconds:
        while number < elapsed * rate:
            task = asyncio.create_task(send(_WARM_UP + number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        await asyncio.sleep(_TICK)
    await _until(lambda: len(took) == _WARM_UP + number)
    await unsubscribe()
    await committer.close()
    counted = sorted(took[_WARM_UP:])
    return Latency(statistics.median(counted), counted[int(len(counted) * 0.99)])


async def _until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not done():
            await asyncio.sleep(0.01)


async def ours_at(rate: float, seconds: float) -> Latency:
    async with server("always") as on:
        await backlog.Backlog(on.bus).prepare()
        async with process(DRIVER, {"CONVEYOR_NATS_URL": on.url}):
            subject = subjects.step_dispatch(noop.NAME, noop.TYPE)
            return await latency(on, MESSAGES, subject, subjects.RESULT, rate, seconds)


async def loops_at(rate: float, seconds: float) -> Latency:
    async with server("always") as on:
        await peers.prepare(on.bus)
        async with process(peers.LOOP.argv, peers.env(on.url)):
            return await latency(on, peers.WORK, peers.SUBJECT, peers.RESULT_SUBJECT, rate, seconds)


async def main(seconds: float, rounds: int) -> None:
    us: list[Latency] = []
    them: list[Latency] = []
    for number in range(rounds):
        our_rate = (await ours(EVENTS, "always", claims=False)).rate / 2
        their_rate = (await theirs(EVENTS, "always", peers.LOOP)).rate / 2
        us.append(await ours_at(our_rate, seconds))
        them.append(await loops_at(their_rate, seconds))
        print(f"  round {number + 1}: ours at {our_rate:.0f}/s {us[-1]}, the loop at {their_rate:.0f}/s {them[-1]}")
    for name, measured in (("ours", us), ("plain loop", them)):
        figures = {f"{p} ms": statistics.median(getattr(it, p) for it in measured) * 1e3 for p in ("p50", "p99")}
        report.row(f"latency: {name}", "always", figures)
    for p in ("p50", "p99"):
        ratio = statistics.median(getattr(our, p) / getattr(their, p) for our, their in zip(us, them, strict=True))
        report.goal("latency", "always", f"event to reconcile, ours / plain loop, {p}", ratio, most=1.3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    uvloop.run(main(options.seconds, options.rounds))
