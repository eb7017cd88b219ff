"""When a step that ended in a dead letter may have another attempt."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from conveyor_runtime.engine import planner
from conveyor_runtime.engine.plans import Fleet
from conveyor_runtime.models import DriverRecord, PlannedStep, RunRecord, Status, StepState

NOW = datetime(2030, 1, 1, tzinfo=UTC)
FLEET = Fleet({name: DriverRecord(name=name, types=("thing",)) for name in "abcz"})
DEAD = StepState(status=Status.ERROR, attempt=2, issue=1, takeover=4, deaths=5, message="5 workers died")
AT_WORK = StepState(attempt=1, issue=1)


def run_of(*plan: PlannedStep, **fields: Any) -> RunRecord:
    base: dict[str, Any] = {"type": "thing", "name": "one", "event": "create", "generation": 1, "created_at": NOW}
    return RunRecord(run_id="r", **{"status": Status.RUNNING, "plan": plan, **base, **fields})


def step(driver: str, *needs: str, **fields: Any) -> PlannedStep:
    return PlannedStep(id=driver, driver=driver, needs=needs, **fields)


def test_it_has_another_attempt_and_what_was_skipped_for_it_is_open_again() -> None:
    skipped = StepState(status=Status.SKIPPED, message="step a did not succeed")
    run = run_of(step("a"), step("b", "a"), step("c"), steps={"a": DEAD, "b": skipped, "c": AT_WORK})
    again = planner.advance(planner.reopen(run, "a", 2, NOW), FLEET, NOW)
    a = again.steps["a"]
    assert (a.status, a.attempt, a.takeover, a.deaths, a.issue) == (Status.PENDING, 3, 0, 0, 1)
    assert "b" not in again.steps and again.steps["c"] == AT_WORK


@pytest.mark.parametrize(
    "run",
    [
        run_of(step("a"), steps={"a": DEAD}, status=Status.ERROR),
        run_of(step("a"), step("c"), steps={"a": DEAD.model_copy(update={"attempt": 3}), "c": AT_WORK}),
        run_of(step("a"), step("c"), steps={"a": DEAD.model_copy(update={"status": Status.FAILED}), "c": AT_WORK}),
        run_of(step("a"), step("z", finally_=True), steps={"a": DEAD, "z": AT_WORK}),
        run_of(step("b"), step("c"), steps={"c": AT_WORK}),
        planner.cancel(run_of(step("a"), step("c"), steps={"a": DEAD, "c": AT_WORK}), "me", "enough", NOW),
    ],
    ids=["run ended", "attempted since", "other end", "finally has begun", "no such step", "cancelled"],
)
def test_it_stays_as_it_is(run: RunRecord) -> None:
    assert planner.reopen(run, "a", 2, NOW) is run
