"""How the dispatches of a transition leave."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import pytest

from conveyor_runtime.engine.dispatcher import UndeliverableError
from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.models import PlannedStep, RunRecord, Status, StepState
from conveyor_runtime.store import keys
from tests.unit.engine.world import NOW, Watcher


class Gate:
    """A dispatcher that lets nothing go before everything it waits for has come."""

    def __init__(self, count: int, refuses: Mapping[str, Exception]) -> None:
        self.barrier = asyncio.Barrier(max(count, 1))
        self.refuses = refuses
        self.sent: list[str] = []

    async def publish(self, run: RunRecord, step: PlannedStep, state: StepState) -> None:
        async with self.barrier:
            if step.id in self.refuses:
                raise self.refuses[step.id]
            self.sent.append(step.id)


async def issue(ids: Iterable[str], refuses: Mapping[str, Exception]) -> tuple[RunRecord, Gate]:
    """A run with these steps open, after their dispatches have left."""
    plan = tuple(PlannedStep(id=id_, driver="d") for id_ in ids)
    opened = {step.id: StepState(attempt=1, issue=1) for step in plan}
    run = RunRecord(
        run_id="r",
        type="thing",
        name="one",
        event="create",
        generation=1,
        status=Status.RUNNING,
        plan=plan,
        steps=opened,
        created_at=NOW,
    )
    watcher, gate = Watcher(), Gate(len(plan), refuses)
    await watcher.put(keys.run("r"), run)
    watcher.transitions.dispatcher = gate  # type: ignore[assignment]
    async with asyncio.timeout(5):
        return await watcher.transitions.dispatch(run, [(step, opened[step.id]) for step in plan]), gate


@pytest.mark.parametrize("ids", ["", "a", "abc"])
async def test_all_dispatches_of_a_transition_leave_at_the_same_time(ids: str) -> None:
    run, gate = await issue(ids, {})
    assert sorted(gate.sent) == list(ids)
    assert not any(state.status.terminal for state in run.steps.values())


async def test_what_can_never_leave_ends_its_step_and_what_cannot_now_is_left() -> None:
    refuses = {"a": UndeliverableError("too large"), "b": BusUnavailable("away")}
    run, gate = await issue("abc", refuses)
    assert gate.sent == ["c"]
    assert (run.steps["a"].status, run.steps["a"].message) == (Status.ERROR, "too large")
    assert run.steps["b"].open
