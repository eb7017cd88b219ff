"""The same on taskiq-nats: its pull broker, with orjson, in one worker process."""

from __future__ import annotations

import os

from taskiq.serializers import ORJSONSerializer
from taskiq_nats import PullBasedJetStreamBroker

from tests.benchmarks import peers
from tests.benchmarks.harness import IN_FLIGHT

broker = PullBasedJetStreamBroker(
    [os.environ["BENCH_NATS"]],
    subject=peers.SUBJECT,
    stream_name=peers.WORK,
    durable=peers.DURABLE,
    pull_consume_batch=IN_FLIGHT,
    pull_consume_timeout=5,
).with_serializer(ORJSONSerializer())


@broker.task(task_name="bench")
async def work(body: str) -> None:
    await broker.js.publish(peers.RESULT_SUBJECT, peers.answer(body.encode()))
