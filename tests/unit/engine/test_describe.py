"""What is shown of a run, from its record and from what claims, drivers and leases add to it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from conveyor_runtime.engine.describe import describe_run
from conveyor_runtime.models import (
    Cancel,
    Claim,
    DriverRecord,
    Entry,
    Instance,
    Model,
    PlannedStep,
    ResourceRecord,
    Run,
    RunRecord,
    Status,
    StepState,
)
from conveyor_runtime.store import MemoryStore, View, keys
from conveyor_runtime.store.base import Change

NOW = datetime(2030, 1, 1, tzinfo=UTC)
PLAN = (PlannedStep(id="a", driver="d"), PlannedStep(id="b", name="Bee", driver="d", needs=("a",)))
OPEN = StepState(attempt=1, issue=1)


def run_of(*steps: StepState, **fields: Any) -> RunRecord:
    base: dict[str, Any] = {"type": "thing", "name": "one", "event": "create", "generation": 1, "created_at": NOW}
    states = {step.id: state for step, state in zip(PLAN, steps, strict=False)}
    return RunRecord(**{"run_id": "r", "status": Status.ACCEPTED, "plan": PLAN, "steps": states, **base, **fields})


NONE = "waits for a d process: none is running (gone for good? conveyor delete driver d)"


def shown(run: RunRecord, records: Mapping[str, Model] | None = None, *, active: str | None = "r") -> Run:
    view = View(MemoryStore())
    entry = Entry(run_id=active, event="create", generation=1) if active else None
    resource = ResourceRecord(id="i", type="thing", name="one", created_at=NOW, updated_at=NOW, active=entry)
    known = {keys.resource("thing", "one"): resource, **(records or {})}
    for revision, (key, record) in enumerate(known.items(), 1):
        view.apply(Change(key, record.encode(), revision))

    def is_dead(instance_id: str) -> bool:
        found = view.instance(instance_id)
        return found is None or found.record.ended or bool(found.record.gone)

    return describe_run(run, view, is_dead=is_dead)


LIMITED = {keys.driver("d"): DriverRecord(name="d", types=("thing",), max_concurrent=3)}
RATED = {keys.driver("d"): DriverRecord(name="d", types=("thing",), rate_limit="10/s")}
ADMITTED = {keys.driver("d"): DriverRecord(name="d", types=("thing",), uses=True)}
BOTH = {keys.driver("d"): DriverRecord(name="d", types=("thing",), rate_limit="5/m, 3 at once", uses=True)}
DRIVER = {keys.driver("d"): DriverRecord(name="d", types=("thing",))}
CLAIM = {keys.claim("r", "a", 1, 0): Claim(instance="i1", node="n1", at=NOW)}


def living(**fields: Any) -> dict[str, Model]:
    return {keys.instance("i1"): Instance(id="i1", driver="d", started_at=NOW, renewed_at=NOW, **fields)}


@pytest.mark.parametrize(
    ("state", "records", "message"),
    [
        (OPEN, {}, "waits for a driver named d: none has ever registered"),
        (OPEN, DRIVER, NONE),
        (
            OPEN,
            {**DRIVER, **living(ended=True)},
            NONE,
        ),
        (
            OPEN,
            {**DRIVER, **living(gone="x")},
            NONE,
        ),
        (OPEN, {**DRIVER, **living()}, "waits for a free d"),
        (OPEN, {**LIMITED, **living()}, "waits for a free d (at most 3 runs at once)"),
        (OPEN, {**RATED, **living()}, "waits for a free d (at most 10/s)"),
        (OPEN, {**ADMITTED, **living()}, "waits for a free d (or for room on its node)"),
        (OPEN, {**BOTH, **living()}, "waits for a free d (at most 5/m, 3 at once; or for room on its node)"),
        (
            OPEN.model_copy(update={"node": "n9"}),
            {**DRIVER, **living()},
            "waits for a d process on node n9: none is running (gone for good? conveyor delete driver d)",
        ),
        (OPEN.model_copy(update={"node": "n9"}), {**DRIVER, **living(nodes=("n9",))}, "waits for a free d on node n9"),
    ],
)
def test_why_a_step_waits(state: StepState, records: dict[str, Model], message: str) -> None:
    """Rule 6."""
    view = shown(run_of(state), records)
    assert (view.status, view.reason) == (Status.PENDING, f"step a {message}")
    assert (view.steps[0].status, view.steps[0].message) == (Status.PENDING, message)


def test_a_claimed_step_is_running_where_its_claim_says() -> None:
    view = shown(run_of(OPEN), {**DRIVER, **CLAIM})
    assert (view.status, view.steps[0].status, view.steps[0].node) == (Status.RUNNING, Status.RUNNING, "n1")
    assert view.started_at == NOW and view.steps[1].status is Status.PENDING


def test_a_claim_of_the_engine_or_of_an_earlier_takeover_is_nobody_at_work() -> None:
    mine = {keys.claim("r", "a", 1, 0): Claim(instance="engine", at=NOW)}
    assert shown(run_of(OPEN), {**DRIVER, **mine}).steps[0].status is Status.PENDING
    assert shown(run_of(OPEN.model_copy(update={"takeover": 1})), {**DRIVER, **CLAIM}).steps[0].status is Status.PENDING


def test_a_run_behind_another_says_behind_which() -> None:
    view = shown(run_of(), active="other")
    assert (view.status, view.reason) == (Status.ACCEPTED, "waits for run other of the same resource")
    assert shown(run_of(), active=None).status is Status.ACCEPTED


def test_a_direct_run_nobody_takes_says_so() -> None:
    """Rule 4."""
    view = shown(run_of(plan=None))
    assert (view.status, view.reason) == (Status.PENDING, "waits for a driver that takes create of thing")


def test_a_retry_is_announced_with_its_reason() -> None:
    view = shown(run_of(StepState(status=Status.AWAITING_RETRY, attempt=1, message="boom")))
    assert (view.status, view.reason) == (Status.RUNNING, "step a is tried again: boom")


def test_a_step_that_killed_its_workers_says_so_while_it_waits() -> None:
    state = StepState(attempt=1, takeover=2, deaths=2, due=NOW)
    view = shown(run_of(state), {**DRIVER, **living()})
    assert (view.status, view.steps[0].status) == (Status.RUNNING, Status.AWAITING_RETRY)
    assert view.reason == "step a is tried again: 2 workers died while they worked on it"


def test_a_cancelled_run_is_cancelling_until_it_has_ended() -> None:
    cancel = Cancel(who="me", why="enough", at=NOW)
    assert shown(run_of(OPEN, cancel=cancel), CLAIM).status is Status.CANCELLING
    ended = run_of(cancel=cancel, status=Status.CANCELLED, reason="cancelled by me: enough", finished_at=NOW)
    assert (shown(ended).status, shown(ended).reason) == (Status.CANCELLED, "cancelled by me: enough")


def test_data_is_found_wherever_it_lies() -> None:
    done = StepState(status=Status.SUCCEEDED, attempt=1, data={"x": 1})
    kept = StepState(status=Status.SUCCEEDED, attempt=1, data_key="data.r.b.1.0")
    run = run_of(done, kept)
    assert [step.data for step in shown(run).steps] == [{"x": 1}, None]
    assert describe_run(run, View(MemoryStore()), {"data.r.b.1.0": [2]}, is_dead=lambda it: False).steps[1].data == [2]
    assert [step.name for step in shown(run).steps] == ["a", "Bee"]
