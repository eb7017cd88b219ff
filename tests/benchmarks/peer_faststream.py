"""The same on FastStream: a pull subscriber that works on 512 messages at once, without type conversion or logging."""

from __future__ import annotations

import os

import uvloop
from faststream import AckPolicy, FastStream
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub

from tests.benchmarks import peers
from tests.benchmarks.harness import IN_FLIGHT

broker = NatsBroker(os.environ["BENCH_NATS"], logger=None, apply_types=False)


async def raw(message: NatsMessage) -> bytes:
    """The body as it is: its own decoder would parse it once more than the others do."""
    return bytes(message.body)


@broker.subscriber(
    peers.SUBJECT,
    durable=peers.DURABLE,
    stream=JStream(peers.WORK, declare=False),
    pull_sub=PullSub(batch_size=IN_FLIGHT, timeout=5),
    ack_policy=AckPolicy.NACK_ON_ERROR,
    decoder=raw,
    no_reply=True,
)
async def work(body: bytes) -> None:
    await broker.publish(peers.answer(body), peers.RESULT_SUBJECT, stream=peers.RESULTS)


if __name__ == "__main__":
    uvloop.run(FastStream(broker, logger=None).run())
