"""The least a logger and a delivery need of the bus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from conveyor_runtime.bus import Bus, Committer, Delivery, Message, Receipt
from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.reconcile import DriverLogger

RUN = "0197f000-0000-7000-8000-000000000000"


class FakeBus:
    max_payload = 1 << 20

    def __init__(self) -> None:
        self.live: list[tuple[str, bytes]] = []

    def publish_core(self, subject: str, data: bytes) -> None:
        self.live.append((subject, data))

    async def wait_connected(self, timeout: float) -> None:
        await asyncio.sleep(0)


class FakeCommitter:
    """Keeps what is committed, unless it is told to fail."""

    def __init__(self) -> None:
        self.stored: list[Message] = []
        self.units: list[int] = []
        self.fail: Callable[[], bool] = lambda: False

    async def commit(self, unit: Sequence[Message], *, timeout: float = 10.0) -> list[Receipt]:
        await asyncio.sleep(0.001)
        if self.fail():
            raise BusUnavailable("away")
        self.units.append(len(unit))
        self.stored += unit
        return [Receipt(len(self.stored), False) for _ in unit]

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [orjson.loads(message.data) for message in self.stored]

    @property
    def texts(self) -> list[str]:
        return [line["message"] for line in self.lines]


@dataclass(eq=False)
class FakeDelivery:
    data: bytes
    headers: dict[str, str] = field(default_factory=dict)
    subject: str = "drivers.d.resources.thing"
    stream_seq: int = 1
    age: float = 0.0


def delivery(
    data: bytes, headers: dict[str, str] | None = None, subject: str = "drivers.d.resources.thing"
) -> Delivery:
    return cast(Delivery, FakeDelivery(data, headers or {}, subject))


def a_logger(committer: FakeCommitter, bus: FakeBus | None = None) -> DriverLogger:
    return DriverLogger(
        cast(Bus, bus or FakeBus()),
        cast(Committer, committer),
        run_id=RUN,
        driver="d",
        pipeline="p",
        step="s",
        attempt=1,
    )
