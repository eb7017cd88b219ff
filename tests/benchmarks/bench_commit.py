"""What group commit gains: durable messages per second, singles against the committer, in the same run.

    python -m tests.benchmarks.bench_commit [seconds per case [always|2m]]

Server in a temporary directory, at `sync: always` unless told otherwise; 600-byte messages with a Msg-Id, uvloop.
"floor" is single publishes of the same frames, each caller waiting for its own PubAck.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from conveyor_runtime.bus import Bus, Committer, EmbeddedServer, Message, Puller, Slots
from conveyor_runtime.bus.streams import MESSAGES, RESULTS, ensure_consumer, ensure_streams

DATA = b"x" * 600


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


async def commits(bus: Bus, seconds: float) -> None:
    committer = Committer(bus, RESULTS)

    async def single(name: str) -> object:
        return await bus.publish("pipelines.driver.result", DATA, msg_id="s" + name)

    async def group(name: str) -> object:
        return await committer.commit([Message("pipelines.driver.result", DATA, msg_id="g" + name)])

    print(f"{'callers':>8} {'floor/s':>9} {'commit/s':>9} {'ratio':>6}")
    for callers in (1, 8, 16, 64, 256, 512, 2000):
        floor = await rate(callers, seconds, single)
        gained = await rate(callers, seconds, group)
        print(f"{callers:>8} {floor:>9.0f} {gained:>9.0f} {gained / floor:>6.1f}")
        await bus.api(f"STREAM.PURGE.{RESULTS}", timeout=60)
    print(committer.stats)
    await committer.close()


async def hot_path(bus: Bus, events: int) -> None:
    """Pull, commit a result, ack: 512 at once."""
    feed, results = Committer(bus, MESSAGES), Committer(bus, RESULTS)

    async def make() -> object:
        return await ensure_consumer(bus, MESSAGES, "cvpy-b", filters=["drivers.b.resources.t"], max_ack_pending=4096)

    await make()
    for _ in range(events // 500):
        await feed.commit([Message("drivers.b.resources.t", DATA)] * 500)
    puller = Puller(bus, MESSAGES, "cvpy-b", Slots(512), on_missing=make)
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
    workers = [asyncio.create_task(worker()) for _ in range(512)]
    await finished.wait()
    speed = events / (time.perf_counter() - start)
    print(f"pull, commit a result, ack; 512 at once, backlog of {events}: {speed:.0f} events/s")
    for task in workers:
        task.cancel()
    await puller.stop()
    await feed.close()
    await results.close()


async def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    sync = sys.argv[2] if len(sys.argv) > 2 else "always"
    with tempfile.TemporaryDirectory() as directory:
        server = EmbeddedServer(Path(directory), sync=sync)
        await server.start()
        bus = await Bus.connect(server.url, name="bench")
        await ensure_streams(bus)
        await commits(bus, seconds)
        # An acknowledgement deletes a message. In the stream's newest block that is free, in an older one it costs the
        # server an fsync of its own, so a long backlog is slower to work off.
        await hot_path(bus, 4_000)
        await bus.api(f"STREAM.PURGE.{RESULTS}", timeout=60)
        await hot_path(bus, 20_000)
        await bus.close()
        await server.stop()


if __name__ == "__main__":
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
