"""A result that is too large for the bus: stored as an error if it can be, else told."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import orjson
import pytest

from conveyor_runtime.bus import Bus, Committer, Message, PayloadTooLarge, Receipt
from conveyor_runtime.models import Status, StepResult
from conveyor_runtime.reconcile.publish import publish_result
from conveyor_runtime.reconcile.work import Work, decode
from tests.unit.reconcile.fakes import FakeBus, FakeCommitter, delivery

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Small(FakeCommitter):
    """Of a bus that takes so many bytes at most."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.refused = 0

    async def commit(self, unit: Sequence[Message], *, timeout: float = 10.0) -> list[Receipt]:
        if len(unit[0].data) > self.most:
            self.refused += 1
            assert self.refused < 10, "tried for ever"
            raise PayloadTooLarge(f"{len(unit[0].data)} bytes")
        return await super().commit(unit, timeout=timeout)


def work_of(payload: str) -> Work:
    headers = {"Cv-Run": "r", "Cv-Step": "s", "Cv-Attempt": "1", "Cv-Takeover": "0", "Cv-Issue": "1"}
    return decode(delivery(orjson.dumps({"event": "update", "run_id": "r", "id": "m", "payload": payload}), headers))


def result_of(data: Any) -> StepResult:
    numbers: dict[str, Any] = {"run_id": "r", "step": "s", "attempt": 1, "takeover": 0}
    return StepResult(**numbers, driver="d", status=Status.SUCCEEDED, data=data, started_at=NOW, finished_at=NOW)


async def publish(committer: Small, work: Work, result: StepResult) -> None:
    await publish_result(cast(Bus, FakeBus()), cast(Committer, committer), work, result)


async def test_what_is_too_large_is_stored_as_an_error_without_what_made_it_so() -> None:
    """Rule 8: never stored would mean done again."""
    committer = Small(2000)
    large = orjson.dumps({"resource": "thing", "name": "one", "spec": {"x": "y" * 2000}}).decode()
    await publish(committer, work_of(large), result_of({"n": "z" * 2000}))
    [stored] = committer.lines
    assert (stored["driverresult"]["success"], stored["resource"], stored["cv"]["status"]) == (False, {}, "Error")
    assert stored["driverresult"]["message"].startswith("its result cannot be stored: ")
    assert committer.refused == 1


async def test_what_is_too_large_even_then_is_told_and_not_tried_for_ever() -> None:
    committer = Small(10)
    with pytest.raises(PayloadTooLarge):
        await publish(committer, work_of('{"resource":"thing","name":"one"}'), result_of(None))
    assert committer.stored == [] and committer.refused <= 3
