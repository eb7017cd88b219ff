"""Log lines by nats-py alone, with as many unanswered as it allows by default (4000); then it stays."""

from __future__ import annotations

import asyncio
import os

import nats
import uvloop


async def main() -> None:
    client = await nats.connect(os.environ["BENCH_NATS"])
    stream = client.jetstream()
    data = os.environ["BENCH_LINE"].encode()
    for _ in range(int(os.environ["BENCH_LINES"])):
        await stream.publish_async("logs.bench", data)
    await stream.publish_async_completed()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
