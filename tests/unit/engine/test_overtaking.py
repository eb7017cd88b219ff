"""Which dispatches are named as coming before others."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from conveyor_runtime.engine import overtaking
from conveyor_runtime.models import Claim, Model, Overtaker, PlannedStep, RunRecord, Status, StepState
from conveyor_runtime.store import Change, MemoryStore, View, keys

NOW = datetime(2030, 1, 1, tzinfo=UTC)
IT = Overtaker(priority=3, seq=7, run_id="r", step="s", attempt=1, takeover=2)


def named(**fields: Any) -> Overtaker:
    return IT.model_copy(update={"run_id": f"r{fields.get('seq', 7)}", **fields})


def test_the_most_urgent_come_first_then_the_oldest_and_no_more_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overtaking, "MOST", 3)
    low, old, young, top = named(priority=1, seq=1), named(seq=2), named(seq=4), named(priority=9, seq=5)
    assert overtaking.in_order([young, low, top, old]) == (top, old, young)


def test_what_was_issued_again_counts_once_by_its_newest_message() -> None:
    again = IT.model_copy(update={"seq": 9})
    assert overtaking.in_order([again, IT]) == overtaking.in_order([IT, again]) == (again,)


RUN = RunRecord(
    run_id="r", type="thing", name="one", event="create", generation=1, status=Status.RUNNING, created_at=NOW,
    plan=(PlannedStep(id="s", driver="d"),), steps={"s": StepState(attempt=1, takeover=2, issue=1)},
)  # fmt: skip
OVER = RUN.model_copy(update={"steps": {"s": StepState(attempt=1, takeover=3, issue=1)}})
CLAIM = {keys.claim("r", "s", 1, 2): Claim(instance="i", at=NOW)}


@pytest.mark.parametrize(
    ("records", "waits"),
    [({}, True), ({"run.r": RUN}, True), ({"run.r": OVER}, False), ({"run.r": RUN, **CLAIM}, False)],
    ids=["not known yet", "open", "taken over since", "claimed"],
)
def test_what_has_been_begun_waits_no_more(records: dict[str, Model], waits: bool) -> None:
    view = View(MemoryStore())
    for revision, (key, record) in enumerate(records.items(), 1):
        view.apply(Change(key, record.encode(), revision))
    assert overtaking.is_waiting(view, IT) is waits
