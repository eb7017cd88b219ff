"""What a resource owes, as tables; and two engines settling one resource at once."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from conveyor_runtime.engine import runs
from conveyor_runtime.engine.plans import Fleet
from conveyor_runtime.engine.settle import Settler, next_record, superseded
from conveyor_runtime.engine.steps import NODE_GONE
from conveyor_runtime.engine.transitions import Transitions
from conveyor_runtime.models import Entry, PlannedStep, Resource, ResourceRecord, RunRecord, Status, StepState
from conveyor_runtime.store import MemoryStore, Put, State, View, Write, keys

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SOON, PAST = NOW + timedelta(hours=1), NOW - timedelta(hours=1)


def entry(text: str) -> Entry:
    """`update2` = an update of generation 2; `create1+` = one that is due later, `create1-` one that is due."""
    due = {"+": SOON, "-": PAST}.get(text[-1])
    event, generation = text.rstrip("+-")[:-1], int(text.rstrip("+-")[-1])
    return Entry(run_id=text, event=event, generation=generation, due=due)


def owing(active: str, *queue: str, **fields: Any) -> ResourceRecord:
    return ResourceRecord(
        id="i",
        type="thing",
        name="one",
        created_at=NOW,
        updated_at=NOW,
        active=entry(active) if active else None,
        queue=tuple(map(entry, queue)),
        **fields,
    )


def run_of(run_id: str, status: Status = Status.SUCCEEDED, **fields: Any) -> RunRecord:
    base: dict[str, Any] = {"type": "thing", "name": "one", "event": "create", "generation": 1, "created_at": NOW}
    return RunRecord(run_id=run_id, status=status, **{**base, **fields})


@pytest.mark.parametrize(
    ("record", "keep_all", "expected"),
    [
        (owing("create1", generation=1), False, {}),
        (owing("create1", "update2", generation=2), False, {}),
        (owing("create1", "update2", "update3", generation=3), False, {"update2": "update3"}),
        (owing("create1", "update2", "update3", generation=3), True, {}),
        (owing("create1", "create1+", "update2", generation=2), False, {"create1+": "update2"}),
        (owing("create1", "create1+", "update2", generation=2), True, {"create1+": "update2"}),
        (owing("update2", "create1+", generation=2), False, {"create1+": "update2"}),
        (owing("update2", "create1-", generation=2), True, {"create1-": "update2"}),
        (owing("", "create1+", generation=2), False, {"create1+": "generation 2"}),
        (owing("update2", "update2+", "resync2+", generation=2), False, {}),
        (owing("update2", "resync1+", generation=2), False, {"resync1+": "update2"}),
        (owing("update2", "update3", "delete3", deleting=True, generation=3), True, {"update3": "delete3"}),
        (owing("delete3", "update2+", deleting=True, generation=3), False, {"update2+": "delete3"}),
        (owing("", "delete3+", deleting=True, generation=3), False, {}),
        (owing("update3", "delete3", "delete4", deleting=True, generation=3), False, {"delete3": "delete4"}),
        (owing("delete3", "delete4", deleting=True, generation=3), False, {}),
        (owing("delete3", "delete4+", deleting=True, generation=3), False, {"delete4+": "delete3"}),
    ],
)
def test_what_is_superseded_and_by_what(record: ResourceRecord, keep_all: bool, expected: dict[str, str]) -> None:
    """Rules 2 and 3."""
    found = {it.run_id: reason for it, reason in superseded(record, keep_all)}
    assert found == {run_id: f"superseded by {by}" for run_id, by in expected.items()}


@pytest.mark.parametrize(
    ("record", "ended", "active", "queue"),
    [
        (owing("create1", "update2"), [], "create1", ["update2"]),
        (owing("create1", "update2"), ["create1"], "update2", []),
        (owing("create1"), ["create1"], None, []),
        (owing("create1", "update2", "update3"), ["update2"], "create1", ["update3"]),
        (owing("create1", "update2", "update3"), ["create1", "update2"], "update3", []),
        (owing("", "create1+"), [], None, ["create1+"]),
        (owing("", "create1-"), [], "create1-", []),
        (owing("", "create1+", "update2"), [], "update2", ["create1+"]),
        (owing("create1", "create1-", "update2"), ["create1"], "create1-", ["update2"]),
    ],
)
def test_what_comes_next(record: ResourceRecord, ended: list[str], active: str | None, queue: list[str]) -> None:
    """Rule 2."""
    after = next_record(record, {run_id: run_of(run_id) for run_id in ended}, NOW)
    assert (after.active and after.active.run_id, [it.run_id for it in after.queue]) == (active, queue)
    if not ended and after.active == record.active:
        assert after is record


@pytest.mark.parametrize(
    ("active", "status", "observed"),
    [
        ("update2", Status.SUCCEEDED, (2, 2)),
        ("update2", Status.FAILED, (0, 2)),
        ("update2", None, (0, 0)),
        ("resync2", Status.SUCCEEDED, (0, 2)),
        ("delete2", Status.SUCCEEDED, (0, 0)),
    ],
)
def test_what_an_ended_run_leaves_in_the_record(active: str, status: Status | None, observed: tuple[int, int]) -> None:
    run = run_of(active, status, event=active[:-1], generation=2) if status else None
    after = next_record(owing(active), {active: run}, NOW)
    assert (after.last_run, (after.observed_generation, after.ended_generation)) == (active, observed)


@pytest.mark.parametrize(
    ("status", "step", "after"),
    [
        pytest.param(Status.SUCCEEDED, StepState(stays="n2"), "n2", id="started there"),
        pytest.param(Status.SUCCEEDED, StepState(), None, id="it is no service any more"),
        pytest.param(Status.FAILED, StepState(stays="n2"), "n2", id="started, and another step failed"),
        pytest.param(Status.FAILED, StepState(node="n1", message="exit code 1"), "n1", id="what ran may run still"),
        pytest.param(Status.ERROR, StepState(node="n1", message=f"{NODE_GONE}: nobody"), None, id="its node is gone"),
        pytest.param(Status.ERROR, StepState(node="n3", message=f"{NODE_GONE}: nobody"), "n1", id="another is gone"),
    ],
)
def test_where_a_service_is(status: Status, step: StepState, after: str | None) -> None:
    """Rule 5."""
    run = run_of("update2", status, event="update", generation=2, steps={"a": step})
    assert next_record(owing("update2", node="n1"), {"update2": run}, NOW).node == after
    assert next_record(owing("update2", node="n1"), {"update2": None}, NOW).node == "n1", "a run that was lost"


def test_a_run_cancelled_before_its_turn_has_ended_its_generation() -> None:
    """Rule 2: the sweep must not take it for lost."""
    cancelled = run_of("update2", Status.CANCELLED, event="update", generation=2)
    after = next_record(owing("create1", "update2", generation=2), {"update2": cancelled}, NOW)
    assert (after.active, after.queue, after.ended_generation) == (entry("create1"), (), 2)
    again = next_record(after, {"create1": run_of("create1")}, NOW)
    assert (again.entries, again.ended_generation, again.observed_generation) == ((), 2, 1)


def test_a_large_resource_lies_in_a_key_of_its_own() -> None:
    small = run_of("r", resource=Resource(name="one", spec={"a": 1}))
    large = run_of("r", resource=Resource(name="one", spec={"a": "x" * 5000}))
    assert [put.key for put in runs.puts(small)] == ["run.r"]
    [first, second] = runs.puts(large)
    assert (first.key, second.key, second.record) == ("input.r", "run.r", large.model_copy(update={"resource": None}))


class World:
    """Settlers over one store, each with a view of its own, as in two engines."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.started: list[str] = []
        self.waits: list[float] = []
        self.cancelled: list[str] = []

    async def settler(self) -> tuple[Settler, State]:
        view = View(self.store)
        await view.start()
        state = State(self.store, view)
        transitions = Transitions(state, cast(Any, SimpleNamespace()), Fleet, lambda: NOW)
        return (
            Settler(
                transitions,
                start=self.started.append,
                cancelled=lambda run: self.cancelled.append(run.run_id),
                later=lambda type_, name, seconds: self.waits.append(seconds),
            ),
            state,
        )

    async def put(self, *puts: Put) -> None:
        await State(self.store).commit(*puts)

    async def record(self) -> ResourceRecord:
        found = await State(self.store).resource("thing", "one")
        assert found is not None
        return found.record

    async def stored_runs(self) -> set[str]:
        return {stored.key for stored in await self.store.list("run.")}


def ended_asking(**fields: Any) -> RunRecord:
    return run_of("create1", requeue_after=60.0, finished_at=NOW, resource=Resource(name="one"), **fields)


async def test_a_requeue_is_written_once_whoever_settles() -> None:
    """Rule 2: two engines may settle the same resource at the same moment."""
    world = World()
    await world.put(Put(keys.run("create1"), ended_asking()), Put(keys.resource("thing", "one"), owing("create1")))
    one, _ = await world.settler()
    other, stale = await world.settler()
    await stale.view.stop()  # from here on it knows only what was
    await one.settle("thing", "one")
    await other.settle("thing", "one")
    record = await world.record()
    assert record.active is None
    [again] = record.queue
    assert await world.stored_runs() == {"run.create1", f"run.{again.run_id}"}
    assert (again.event, again.due) == ("create", NOW + timedelta(seconds=60))
    assert world.waits[0] == 60.0


async def test_a_requeue_and_the_record_that_names_it_are_one_commit() -> None:
    """Rule 2: a process that dies between two writes leaves neither a run nobody owes nor an entry without a run."""
    world = World()
    await world.put(Put(keys.run("create1"), ended_asking()), Put(keys.resource("thing", "one"), owing("create1")))
    settler, _ = await world.settler()
    commit, units = world.store.commit, []

    async def watch(unit: Sequence[Write], *, timeout: float = 10.0) -> list[int]:
        units.append([write.key for write in unit])
        return await commit(unit, timeout=timeout)

    world.store.commit = watch  # type: ignore[method-assign]
    await settler.settle("thing", "one")
    [again] = (await world.record()).queue
    assert units == [[f"run.{again.run_id}", "resource.thing.one"]]


async def test_a_requeue_of_an_older_generation_is_superseded_unmade() -> None:
    """Rule 2."""
    world = World()
    newer = run_of("update2", Status.ACCEPTED, generation=2)
    record = owing("create1", "update2", generation=2)
    await world.put(Put(keys.run("create1"), ended_asking()), Put(keys.run("update2"), newer))
    await world.put(Put(keys.resource("thing", "one"), record))
    settler, _ = await world.settler()
    await settler.settle("thing", "one")
    after = await world.record()
    assert (after.active, after.queue) == (entry("update2"), ())
    assert world.started == ["update2"]


async def test_a_cancelled_run_is_not_requeued() -> None:
    world = World()
    await world.put(Put(keys.run("create1"), ended_asking().model_copy(update={"status": Status.CANCELLED})))
    await world.put(Put(keys.resource("thing", "one"), owing("create1")))
    settler, _ = await world.settler()
    await settler.settle("thing", "one")
    assert (await world.record()).entries == ()


async def test_a_run_that_is_named_but_not_stored_holds_nothing_up() -> None:
    world = World()
    await world.put(Put(keys.run("update2"), run_of("update2", Status.ACCEPTED)))
    await world.put(Put(keys.resource("thing", "one"), owing("create1", "update2", generation=1)))
    settler, _ = await world.settler()
    await settler.settle("thing", "one")
    assert (await world.record()).active == entry("update2")


@pytest.mark.parametrize(("age", "lost"), [(0.5, False), (59, False), (61, True), (-0.5, False), (-3600, True)])
async def test_a_run_that_may_still_be_on_its_way_into_the_store_is_not_lost(age: float, lost: bool) -> None:
    """I1: the write of a run may be tried again after a reconnect, behind the record that names it."""
    made = int((NOW.timestamp() - age) * 1000)
    run_id = str(uuid.UUID(int=made << 80 | 7 << 76 | 2 << 62))
    named = Entry(run_id=run_id, event="create", generation=1)
    world = World()
    await world.put(Put(keys.resource("thing", "one"), owing("", generation=1).model_copy(update={"active": named})))
    settler, _ = await world.settler()
    await settler.settle("thing", "one")
    assert (await world.record()).active == (None if lost else named)


async def test_a_resource_that_is_gone_leaves_no_versions_behind() -> None:
    world = World()
    record = owing("delete3", generation=3, revision=3, deleting=True)
    other = record.model_copy(update={"id": "other", "name": "two"})
    for it in (record, other):
        await world.put(*(Put(keys.version(it.id, number), it) for number in (1, 2)))
    await world.put(Put(keys.run("delete3"), run_of("delete3", event="delete", generation=3)))
    await world.put(Put(keys.resource("thing", "one"), record))
    settler, _ = await world.settler()
    await settler.settle("thing", "one")
    assert await State(world.store).resource("thing", "one") is None
    assert {stored.key for stored in await world.store.list("version.")} == {"version.other.1", "version.other.2"}


async def test_a_superseded_run_ends_before_it_leaves_the_queue() -> None:
    """Rule 2."""
    world = World()
    for run_id in ("create1", "update2", "update3"):
        status = Status.RUNNING if run_id == "create1" else Status.ACCEPTED
        await world.put(Put(keys.run(run_id), run_of(run_id, status, plan=())))
    await world.put(Put(keys.resource("thing", "one"), owing("create1", "update2", "update3", generation=3)))
    settler, state = await world.settler()
    await settler.settle("thing", "one")
    ended = await state.run("update2")
    assert ended is not None
    assert (ended.record.status, ended.record.reason) == (Status.CANCELLED, "superseded by update3")
    after = await world.record()
    assert (after.active, after.queue) == (entry("create1"), (entry("update3"),))


async def test_a_delete_cancels_the_active_run_and_its_workers_are_told_at_once() -> None:
    """Rule 3."""
    world = World()
    plan = (PlannedStep(id="s", driver="d"),)
    active = run_of("create1", Status.RUNNING, plan=plan, steps={"s": StepState(attempt=1, issue=1)})
    await world.put(Put(keys.run("create1"), active))
    await world.put(Put(keys.run("delete2"), run_of("delete2", Status.ACCEPTED, event="delete")))
    record = owing("create1", "delete2", generation=1).model_copy(update={"deleting": True})
    await world.put(Put(keys.resource("thing", "one"), record))
    settler, state = await world.settler()
    await settler.settle("thing", "one")
    found = await state.run("create1")
    assert found is not None
    assert found.record.cancel is not None
    assert world.cancelled == ["create1"]
    assert (await world.record()).active == entry("create1")
