"""The programs we are measured against: each takes a message, answers with a result, and acknowledges after its PubAck.

All read `work.bench` of the stream `bench-work` by a durable pull consumer and publish on `results.bench`. None sets a
Msg-Id, and the streams keep what was acknowledged, as is their default: both are faster than what our driver does.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from conveyor_runtime.bus import Bus, Committer, Message
from tests.benchmarks import backlog
from tests.benchmarks.harness import IN_FLIGHT, PYTHON

WORK, RESULTS = "bench-work", "bench-results"
SUBJECT, RESULT_SUBJECT = "work.bench", "results.bench"
DURABLE = "bench"


@dataclass(frozen=True)
class Peer:
    """A program to measure ourselves against. `needs` is the module it is built on."""

    name: str
    needs: str
    argv: tuple[str, ...]

    @property
    def there(self) -> bool:
        """Whether it is installed; says so if it is not."""
        if importlib.util.find_spec(self.needs) is None:
            print(f"  {self.name} is not installed (the extra `bench`): left out", flush=True)
            return False
        return True


LOOP = Peer("plain loop", "nats", (*PYTHON, "tests.benchmarks.peer_loop"))
FASTSTREAM = Peer("FastStream", "faststream", (*PYTHON, "tests.benchmarks.peer_faststream"))
TASKIQ = Peer(
    "taskiq-nats",
    "taskiq_nats",
    (
        *(*PYTHON, "taskiq", "worker", "tests.benchmarks.peer_taskiq:broker"),
        *("--workers", "1", "--max-async-tasks", str(IN_FLIGHT)),
        *("--ack-type", "when_executed", "--log-level", "WARNING", "--no-parse"),
    ),
)


def env(url: str) -> Mapping[str, str]:
    """What a peer is told."""
    return {"BENCH_NATS": url}


def answer(data: bytes) -> bytes:
    """The result of a driver message, as Conveyor writes it."""
    message: dict[str, Any] = orjson.loads(data)
    result = {"success": True, "message": "done", "data": {"at": time.monotonic()}, "driver": "bench"}
    body = {"event": "driver.result", "run_id": message["run_id"], "resource": orjson.loads(message["payload"])}
    return orjson.dumps({**body, "driverresult": result})


async def prepare(bus: Bus) -> None:
    """The streams and the consumer."""
    for stream, subject in ((WORK, SUBJECT), (RESULTS, RESULT_SUBJECT)):
        await bus.api(f"STREAM.CREATE.{stream}", {"name": stream, "subjects": [subject], "allow_atomic": True})
    config = {"durable_name": DURABLE, "ack_policy": "explicit", "max_ack_pending": 4 * IN_FLIGHT}
    await bus.api(f"CONSUMER.DURABLE.CREATE.{WORK}.{DURABLE}", {"stream_name": WORK, "config": config})


async def fill(bus: Bus, count: int, peer: Peer) -> None:
    """The streams, the consumer, and `count` messages waiting."""
    await prepare(bus)
    committer = Committer(bus, WORK)
    for start in range(0, count, 500):
        numbers = range(start, min(start + 500, count))
        await committer.commit([Message(SUBJECT, _message(number, peer)) for number in numbers], timeout=60)
    await committer.close()


def _message(number: int, peer: Peer) -> bytes:
    if peer is not TASKIQ:
        return backlog.message(number)
    call = {"task_id": f"{number:032d}", "task_name": "bench", "labels": {}, "kwargs": {}}
    # Its own envelope counts: what is asked of it is so much shorter. Quotes are written as two bytes in it.
    return orjson.dumps({**call, "args": [backlog.message(number, 440).decode()]})
