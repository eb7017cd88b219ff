"""From an event to its reconcile, at half of what one process can do, beside the plain loop at half of what that can.

    python -m tests.benchmarks.bench_latency [--seconds N] [--rounds N]

The clock starts when the event is given to the committer that stores it (ours as the engine's does, in groups; the
loop's likewise), and stops when user code is called. Ours with a claim for each event (`runs`), whose run record is
there before the clock starts, and without (`plain`). All at `always`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson
import uvloop

from conveyor_runtime.bus import Committer, Message, subjects
from tests.benchmarks import backlog, peers, report
from tests.benchmarks.harness import WARM_UP, Server, process, server
from tests.benchmarks.throughput import DRIVER, ours, theirs

EVENTS = 6_000
"""How many are worked off to learn what half of the load is."""

_TICK = 0.002

Send = Callable[[int], Awaitable[tuple[str, float]]]
"""Sends the event of a number; its run's id, and when the clock started."""


@dataclass(frozen=True)
class Latency:
    """Seconds from event to reconcile, and of how many events, at how many per second."""

    p50: float
    p99: float
    events: int
    rate: float


async def latency(on: Server, send: Send, results: str, rate: float, seconds: float) -> Latency:
    """Feed `rate` events per second for so long, once the process has shown that it is at work."""
    sent: dict[str, float] = {}
    called: dict[str, float] = {}

    def arrived(message: object) -> None:
        result = orjson.loads(message.data)  # type: ignore[attr-defined]
        called.setdefault(result["run_id"], result["driverresult"]["data"]["at"])

    async def note(number: int) -> None:
        run_id, at = await send(number)
        sent[run_id] = at

    unsubscribe = await on.bus.subscribe_core(results, arrived)
    await asyncio.gather(*map(note, range(WARM_UP)))
    await _until(lambda: len(called) == WARM_UP)
    warm = set(called)
    tasks: list[asyncio.Task[None]] = []
    began, number = time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < seconds:
        while number < elapsed * rate:
            tasks.append(asyncio.create_task(note(WARM_UP + number)))
            number += 1
        await asyncio.sleep(_TICK)
    await asyncio.gather(*tasks)
    await _until(lambda: len(called) == WARM_UP + number)
    await unsubscribe()
    counted = sorted(at - sent[run_id] for run_id, at in called.items() if run_id not in warm)
    return Latency(statistics.median(counted), counted[int(len(counted) * 0.99)], len(counted), rate)


async def _until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not done():
            await asyncio.sleep(0.01)


async def ours_at(rate: float, seconds: float, *, claims: bool) -> Latency:
    async with server("always") as on:
        events = backlog.Backlog(on.bus)
        await events.prepare()
        async with process(DRIVER, {"CONVEYOR_NATS_URL": on.url}):
            send = events.one_run if claims else events.one_plain
            found = await latency(on, send, subjects.RESULT, rate, seconds)
        await events.close()
        return found


async def loops_at(rate: float, seconds: float) -> Latency:
    async with server("always") as on:
        await peers.prepare(on.bus)
        committer = Committer(on.bus, peers.WORK)

        async def send(number: int) -> tuple[str, float]:
            data = backlog.message(number, run_id=f"r{number}")
            began = time.monotonic()
            await committer.commit([Message(peers.SUBJECT, data)], timeout=60)
            return f"r{number}", began

        async with process(peers.LOOP.argv, peers.env(on.url)):
            found = await latency(on, send, peers.RESULT_SUBJECT, rate, seconds)
        await committer.close()
        return found


async def main(seconds: float, rounds: int) -> None:
    async def ours_half(claims: bool) -> Latency:
        rate = (await ours(EVENTS, "always", claims=claims)).rate / 2
        return await ours_at(rate, seconds, claims=claims)

    async def loops_half() -> Latency:
        return await loops_at((await theirs(EVENTS, "always", peers.LOOP)).rate / 2, seconds)

    calls: dict[str, Callable[[], Awaitable[Latency]]] = {
        "runs": lambda: ours_half(True),
        "plain": lambda: ours_half(False),
        "plain loop": loops_half,
    }
    measured: dict[str, list[Latency]] = {name: [] for name in calls}
    for number in range(rounds):
        # The other way round every second time, so that what runs before whom evens out.
        for name, call in list(calls.items())[:: -1 if number % 2 else 1]:
            measured[name].append(await call())
            print(f"  round {number + 1}: {name} {measured[name][-1]}", flush=True)
    for name, found in measured.items():
        of = f"{rounds} x {seconds:g} s, {sum(it.events for it in found)} events"
        figures = {f"{p} ms": statistics.median(getattr(it, p) for it in found) * 1e3 for p in ("p50", "p99")}
        report.row(f"latency: {name}", "always", of, figures)
    for name in ("runs", "plain"):
        pairs = list(zip(measured[name], measured["plain loop"], strict=True))
        for p in ("p50", "p99"):
            ratio = statistics.median(getattr(our, p) / getattr(their, p) for our, their in pairs)
            what = f"event to reconcile, {name} / plain loop, {p}"
            report.goal("latency", "always", f"{rounds} x {seconds:g} s", what, ratio, most=1.3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    uvloop.run(main(options.seconds, options.rounds))
