"""What group commit gains: durable messages per second, singles against the committer, in the same run.

    python -m tests.benchmarks.bench_commit [--seconds N] [--sync always|2m] [--events N]

600-byte messages with a Msg-Id. "single" is publishes of the same frames, each caller waiting for its own PubAck; both
take turns, for so many seconds with each number of callers. Then the path of a driver: pull, commit a result, ack, with
512 at once, on backlogs of two lengths.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable

import uvloop

from conveyor_runtime.bus import Bus, Committer, Message, Puller, Slots
from conveyor_runtime.bus.streams import MESSAGES, RESULTS, ensure_consumer
from tests.benchmarks import report
from tests.benchmarks.harness import IN_FLIGHT, server

DATA = b"x" * 600

CALLERS = (1, 8, 16, 64, 256, 512, 2000)

GOALS = {1: 0.9, 512: 3.0}
"""Least gain by callers: one alone must not wait for others, many must share."""


async def rate(callers: int, seconds: float, write: Callable[[str], Awaitable[object]]) -> float:
    """Writes per second of so many callers, each waiting for its own before the next."""
    done = 0
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        nonlocal done
        count = 0
        while time.perf_counter() < end:
            count += 1
            await write(f"{time.time_ns()}.{number}.{count}")
            done += 1

    start = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    return done / (time.perf_counter() - start)


async def commits(bus: Bus, seconds: float, sync: str) -> None:
    committer = Committer(bus, RESULTS)

    async def single(name: str) -> object:
        return await bus.publish("pipelines.driver.result", DATA, msg_id="s" + name)

    async def group(name: str) -> object:
        return await committer.commit([Message("pipelines.driver.result", DATA, msg_id="g" + name)])

    for callers in CALLERS:
        floor = await rate(callers, seconds, single)
        gained = await rate(callers, seconds, group)
        what, of = f"commit: {callers} at once", f"{seconds:g} s each"
        report.row(what, sync, of, {"single/s": floor, "commit/s": gained, "ratio": gained / floor})
        if sync == "always" and callers in GOALS:
            report.goal(what, sync, of, "commit / single", gained / floor, least=GOALS[callers])
        await bus.api(f"STREAM.PURGE.{RESULTS}", timeout=60)
    await committer.close()


async def hot_path(bus: Bus, events: int) -> float:
    """Pull, commit a result, ack: events per second."""
    feed, results = Committer(bus, MESSAGES), Committer(bus, RESULTS)

    async def make() -> object:
        return await ensure_consumer(bus, MESSAGES, "cvpy-b", filters=["drivers.b.resources.t"], max_ack_pending=4096)

    await make()
    for first in range(0, events, 500):
        await feed.commit([Message("drivers.b.resources.t", DATA)] * min(500, events - first))
    puller = Puller(bus, MESSAGES, "cvpy-b", Slots(IN_FLIGHT), on_missing=make)
    left = events

    async def worker() -> None:
        nonlocal left
        while True:
            delivery = await puller.next()
            await results.commit(
                [Message("pipelines.driver.result", DATA, msg_id=f"h{delivery.stream_seq}")], timeout=30
            )
            await delivery.ack()
            left -= 1
            if not left:
                finished.set()

    finished = asyncio.Event()
    start = time.perf_counter()
    workers = [asyncio.create_task(worker()) for _ in range(IN_FLIGHT)]
    await finished.wait()
    speed = events / (time.perf_counter() - start)
    for task in workers:
        task.cancel()
    await puller.stop()
    await feed.close()
    await results.close()
    return speed


async def main(seconds: float, sync: str, events: int) -> None:
    async with server(sync) as on:
        await commits(on.bus, seconds, sync)
        for length in (events, events * 5):
            speed = await hot_path(on.bus, length)
            report.row("commit: pull, commit, ack", sync, f"{length} events", {"events/s": speed})
            await on.bus.api(f"STREAM.PURGE.{RESULTS}", timeout=60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--sync", default="always")
    parser.add_argument("--events", type=int, default=4_000)
    options = parser.parse_args()
    uvloop.run(main(options.seconds, options.sync, options.events))
