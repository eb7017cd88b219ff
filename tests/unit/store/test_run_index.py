"""Runs by what is asked for: always what looking at every one of them would find."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from conveyor_runtime.models import Resource, RunRecord, Status
from conveyor_runtime.store.run_index import ALL, LIVE, Facts, RunIndex

NOW = datetime(2030, 1, 1, tzinfo=UTC)

FACTS = st.builds(
    Facts,
    status=st.sampled_from(["Accepted", "Running", "Succeeded", "Failed"]),
    type=st.sampled_from(["t", "u"]),
    name=st.sampled_from(["a", "b"]),
    pipeline=st.sampled_from(["", "p"]),
)
CHANGES = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.none() | FACTS), max_size=40)
KEYS = [
    [ALL],
    [LIVE],
    [LIVE, ("status", "Failed")],
    [("status", "Succeeded"), ("status", "Failed")],
    [("type", "t")],
    [("name", "b")],
    [("resource", "u.a")],
    [("pipeline", "p")],
    [("pipeline", "nobody")],
]


@settings(max_examples=300, deadline=None)
@given(CHANGES, st.sampled_from(KEYS), st.sampled_from(["", "a", "d", "dd", "z"]), st.integers(1, 10))
def test_a_page_is_what_looking_at_every_run_would_find(
    changes: list[tuple[str, Facts | None]], keys: list[tuple[str, str]], cursor: str, count: int
) -> None:
    index, known = RunIndex(), dict[str, Facts]()
    for run_id, facts in changes:
        index.change(run_id, known.pop(run_id, None), facts)
        if facts is not None:
            known[run_id] = facts
    every = sorted((run_id for run_id, facts in known.items() if facts.keys() & set(keys)), reverse=True)
    assert index.before(keys, cursor, count) == [run_id for run_id in every if not cursor or run_id < cursor][:count]
    assert index.count(keys) == len(every)
    assert index.live == {run_id for run_id, facts in known.items() if not facts.ended}


def test_what_a_run_is_found_by_is_read_without_decoding_it() -> None:
    run = RunRecord(
        run_id="r",
        type="thing",
        name="one-1",
        event="create",
        generation=1,
        status=Status.FAILED,
        reason='"pipeline":"mine","status":"Succeeded"',
        pipeline="p",
        resource=Resource(name="two", resource="other", pipeline="q", spec={"status": "x"}),
        created_at=NOW,
    )
    assert Facts.read(run.encode()) == Facts("Failed", "thing", "one-1", "p")
    direct = run.model_copy(update={"pipeline": None})
    assert Facts.read(direct.encode()).pipeline == "q", "one too many, which the filter finds out"
    assert Facts.read(b"\xff not ours") == Facts()
