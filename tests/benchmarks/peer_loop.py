"""The plain loop on nats-py: fetch, orjson, publish with ack, ack; 512 in flight."""

from __future__ import annotations

import asyncio
import os

import nats
import uvloop
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NothingThere

from tests.benchmarks import peers
from tests.benchmarks.harness import IN_FLIGHT


async def main() -> None:
    client = await nats.connect(os.environ["BENCH_NATS"])
    stream = client.jetstream()
    waiting = await stream.pull_subscribe_bind(consumer=peers.DURABLE, stream=peers.WORK)
    room = asyncio.Semaphore(IN_FLIGHT)
    tasks: set[asyncio.Task[None]] = set()

    async def work(message: Msg) -> None:
        await stream.publish(peers.RESULT_SUBJECT, peers.answer(message.data))
        await message.ack()
        room.release()

    while True:
        try:
            messages = await waiting.fetch(IN_FLIGHT // 2, timeout=5)
        except NothingThere:
            continue
        for message in messages:
            await room.acquire()
            task = asyncio.create_task(work(message))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    uvloop.run(main())
