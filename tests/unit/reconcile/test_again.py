"""A dispatch that waits for room or for a token is kept once, however often the sweep took it for lost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from conveyor_runtime.models import RunRecord, Status, StepState, utc_now
from conveyor_runtime.models.message import H_ATTEMPT, H_ISSUE, H_RUN, H_STEP, H_TAKEOVER
from conveyor_runtime.reconcile.again import give_back
from conveyor_runtime.store import MemoryStore, Put, State, keys


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ("1.0.2", "nak 2.0"),
        ("1.0.1", "ack"),
        ("1.0.3", "nak 2.0"),
        ("2.0.1", "nak 2.0"),
        ("x.0.1", "nak 2.0"),
    ],
)
async def test_an_older_issue_goes_when_a_newer_one_is_known(numbers: str, said: str) -> None:
    state, answers = State(MemoryStore()), []
    step = StepState(attempt=1, issue=2)
    run = RunRecord(
        run_id="r", type="thing", name="one", event="create", generation=1, status=Status.RUNNING, steps={"s": step},
        created_at=utc_now(),
    )  # fmt: skip
    await state.commit(Put(keys.run("r"), run))

    async def ack() -> None:
        answers.append("ack")

    async def nak(delay: float) -> None:
        answers.append(f"nak {delay}")

    headers = {H_RUN: "r", H_STEP: "s", **dict(zip((H_ATTEMPT, H_TAKEOVER, H_ISSUE), numbers.split("."), strict=True))}
    await give_back(cast(Any, SimpleNamespace(headers=headers, ack=ack, nak=nak)), state, 2.0)
    assert answers == [said]


async def test_a_message_of_another_publisher_is_kept() -> None:
    answers: list[float] = []

    async def nak(delay: float) -> None:
        answers.append(delay)

    await give_back(cast(Any, SimpleNamespace(headers={}, nak=nak)), State(MemoryStore()), 2.0)
    assert answers == [2.0]
