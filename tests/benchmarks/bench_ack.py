"""What the server pays for an acknowledgement, by the retention of the stream.

    python -m tests.benchmarks.bench_ack [--events N] [--rounds N]

Where an acknowledgement removes the message (interest, work queue), a server that is no cluster writes a tombstone for
each and, at `always`, syncs it. A stream that keeps what was acknowledged writes nothing; purging it up to the
consumer's floor costs one request for as many as there are.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from typing import Any

import uvloop
from nats.aio.msg import Msg

from conveyor_runtime.bus import Bus, Committer, Message, wire
from tests.benchmarks import report
from tests.benchmarks.harness import Server, cpu, server

_CHUNK = 500

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "interest": ("always", {"retention": "interest"}),
    "workqueue": ("always", {"retention": "workqueue"}),
    "limits": ("always", {"retention": "limits"}),
    "limits, purged": ("always", {"retention": "limits"}),
    "interest, persisted later": ("always", {"retention": "interest", "persist_mode": "async", "allow_atomic": False}),
    "interest by default": ("2m", {"retention": "interest"}),
}


async def acknowledge(on: Server, config: dict[str, Any], events: int, *, purge: bool) -> tuple[float, float]:
    """Acknowledgements per second, and milliseconds of the server's CPU for each."""
    bus = on.bus
    await bus.api("STREAM.CREATE.bench", {"name": "bench", "subjects": ["work.bench"], "allow_atomic": True, **config})
    consumer = {"durable_name": "bench", "ack_policy": "explicit", "max_ack_pending": -1}
    await bus.api("CONSUMER.DURABLE.CREATE.bench.bench", {"stream_name": "bench", "config": consumer})
    await _fill(bus, events)
    replies = await _take(bus, events)
    began, used = time.perf_counter(), cpu(on.pid)
    for start in range(0, events, _CHUNK):
        for reply in replies[start : start + _CHUNK]:
            bus.send(wire.assemble(reply, b"", b"+ACK"))
        info = await bus.api("CONSUMER.INFO.bench.bench", timeout=60)
        if purge:
            await bus.api("STREAM.PURGE.bench", {"seq": info["ack_floor"]["stream_seq"] + 1}, timeout=60)
    keeps = config["retention"] == "limits"
    while (await bus.api("CONSUMER.INFO.bench.bench", timeout=60))["num_ack_pending"] or not (
        keeps or (await bus.api("STREAM.INFO.bench", timeout=60))["state"]["messages"] == 0
    ):
        await asyncio.sleep(0.005)
    return events / (time.perf_counter() - began), (cpu(on.pid) - used) / events * 1e3


async def _fill(bus: Bus, events: int) -> None:
    committer = Committer(bus, "bench")
    for _ in range(0, events, _CHUNK):
        await asyncio.gather(
            *(committer.commit([Message("work.bench", b"x" * 600)], timeout=60) for _ in range(_CHUNK))
        )
    await committer.close()


async def _take(bus: Bus, events: int) -> list[str]:
    """Where to acknowledge each message."""
    replies: list[str] = []
    all_there = asyncio.Event()

    def arrived(message: Msg) -> None:
        if message.reply:
            replies.append(message.reply)
            if len(replies) == events:
                all_there.set()

    unsubscribe = await bus.subscribe_core("bench.inbox", arrived)
    request = b'{"batch":%d,"expires":60000000000}' % events
    bus.send(wire.assemble("$JS.API.CONSUMER.MSG.NEXT.bench.bench", b"", request, "bench.inbox"))
    async with asyncio.timeout(60):
        await all_there.wait()
    await unsubscribe()
    return replies


async def main(events: int, rounds: int) -> None:
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, (sync, config) in CASES.items():
            async with server(sync) as on:
                measured[name].append(await acknowledge(on, config, events, purge=name == "limits, purged"))
    for name, (sync, _) in CASES.items():
        rate, used = (statistics.median(it[column] for it in measured[name]) for column in (0, 1))
        report.row(f"ack: {name}", sync, f"{rounds} x {events} acks", {"acks/s": rate, "server ms/ack": used})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    uvloop.run(main(options.events, options.rounds))
