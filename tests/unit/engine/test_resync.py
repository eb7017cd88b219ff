"""Who is given a run that no write asked for; on a clock the test moves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from conveyor_runtime.engine.plans import Fleet
from conveyor_runtime.engine.resync import Resync, shortest_periods
from conveyor_runtime.engine.transitions import Transitions
from conveyor_runtime.models import DriverRecord, Entry, ResourceDefinition, ResourceRecord, RunRecord, Status
from conveyor_runtime.store import MemoryStore, Put, State, View, keys

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DRIVER = DriverRecord(name="d", types=("thing",), events=("create", "update", "resync"))
WATCHER = DRIVER.model_copy(update={"resync_period": 600.0})
ENTRY = Entry(run_id="r", event="create", generation=1)


class World:
    """One engine's resync, with the engine's ears but not its loop."""

    def __init__(self, store: MemoryStore, driver: DriverRecord) -> None:
        self.now = NOW
        self.view = View(store)
        self.state = State(store, self.view)
        self.started: list[str] = []
        fleet = Fleet({"d": driver})
        engine = SimpleNamespace(
            state=self.state,
            transitions=Transitions(self.state, cast(Any, None), lambda: fleet, lambda: self.now),
            fleet=lambda: fleet,
            start=self.started.append,
            settle=lambda type_, name: None,
        )
        self.resync = Resync(cast(Any, engine))

    async def round(self) -> list[RunRecord]:
        """The runs that one more sweep makes."""
        self.started.clear()
        await self.resync.round(list(self.view.resources()))
        return [found.record for run_id in self.started if (found := await self.state.run(run_id)) is not None]


async def world_of(
    record: ResourceRecord, *runs: RunRecord, driver: DriverRecord = DRIVER, store: MemoryStore | None = None
) -> World:
    world = World(store or MemoryStore(), driver)
    puts = [Put(keys.run(run.run_id), run) for run in runs]
    await world.state.commit(Put(keys.definition("thing"), ResourceDefinition(name="thing")), *puts)
    await world.state.commit(Put(keys.resource(record.type, record.name), record))
    return world


def thing(**fields: Any) -> ResourceRecord:
    times = {"created_at": NOW, "updated_at": NOW}
    return ResourceRecord(**{"id": "i", "type": "thing", "name": "one", "spec": {}, **times, **fields})


def ended(status: Status = Status.SUCCEEDED, **fields: Any) -> RunRecord:
    base = {"run_id": "r", "type": "thing", "name": "one", "event": "create", "generation": 1, "plan": ()}
    return RunRecord(**{**base, "status": status, "created_at": NOW, "finished_at": NOW, **fields})


@pytest.mark.parametrize(
    ("fields", "event"),
    [
        ({"last_run": "r"}, "create"),
        ({"generation": 2, "observed_generation": 1, "ended_generation": 1, "last_run": "r"}, "update"),
        ({"generation": 2, "ended_generation": 1, "last_run": "r"}, "create"),
        ({"observed_generation": 1, "ended_generation": 1}, None),
        ({"ended_generation": 1}, None),
        ({"active": ENTRY}, None),
        ({"queue": (ENTRY,)}, None),
        ({"deleting": True, "active": ENTRY}, None),
        ({"deleting": True, "queue": (ENTRY,)}, None),
        ({"type": "pipeline"}, None),
    ],
)
async def test_a_generation_that_lost_its_run_gets_another(fields: dict[str, Any], event: str | None) -> None:
    """Rules 2 and 16: one that failed or was cancelled has had its run."""
    record = thing(**fields)
    world = await world_of(record)
    made = await world.round()
    assert [run.event for run in made] == ([event] if event else [])
    if made:
        after = world.view.resource("thing", "one")
        assert after is not None
        assert after.record.active == Entry(run_id=made[0].run_id, event=made[0].event, generation=record.generation)
        assert await world.round() == [], "it is owed now"


@pytest.mark.parametrize(
    ("last", "lost"),
    [(None, True), (ended(), True), (ended(Status.FAILED, event="delete"), False)],
)
async def test_a_deletion_that_lost_its_run_gets_another(last: RunRecord | None, lost: bool) -> None:
    """Rule 3: it was answered, so it must come to its end. One that failed waits for the next DELETE."""
    driver = DRIVER.model_copy(update={"events": ("delete",)})
    record = thing(deleting=True, last_run="r", ended_generation=1)
    world = await world_of(record, *([last] if last else []), driver=driver)
    made = await world.round()
    assert [(run.event, len(run.plan or ())) for run in made] == ([("delete", 1)] if lost else [])
    assert await world.round() == []


async def test_what_was_seen_last_longer_ago_than_the_period_is_seen_again() -> None:
    """Rule 2: a resync is an entry like any other, and counts from the end of the last run."""
    world = await world_of(thing(observed_generation=1, last_run="r"), ended(), driver=WATCHER)
    world.now = NOW + timedelta(seconds=599)
    assert await world.round() == []
    world.now = NOW + timedelta(seconds=600)
    [run] = await world.round()
    assert (run.event, run.generation, run.pipeline, run.plan) == ("resync", 1, None, None)
    assert await world.round() == [], "one at a time"


async def test_a_requeue_to_come_holds_no_resync_up_but_another_resync_does() -> None:
    """Rule 2."""
    for event, expected in (("create", 1), ("resync", 0)):
        later = Entry(run_id="later", event=event, generation=1, due=NOW + timedelta(days=1))
        record = thing(observed_generation=1, last_run="r", queue=(later,))
        world = await world_of(record, ended(), driver=WATCHER)
        world.now = NOW + timedelta(hours=1)
        assert len(await world.round()) == expected


async def test_two_engines_give_one_run() -> None:
    store, record = MemoryStore(), thing(observed_generation=1, last_run="r")
    one = await world_of(record, ended(), driver=WATCHER, store=store)
    other = World(store, WATCHER)
    await other.view.start()
    await other.view.wait_for(one.view.committed)
    await other.view.stop()  # from here on it knows only what was
    one.now = other.now = NOW + timedelta(hours=1)
    assert (len(await one.round()), len(await other.round())) == (1, 0)
    assert len(await store.list("run.")) == 2


def test_the_shortest_period_of_a_direct_driver_that_takes_resync_counts() -> None:
    """Rule 4."""
    drivers = {
        "a": WATCHER,
        "b": WATCHER.model_copy(update={"types": ("thing", "other"), "resync_period": 60.0}),
        "c": WATCHER.model_copy(update={"direct": False, "resync_period": 1.0}),
        "d": WATCHER.model_copy(update={"events": ("create",), "resync_period": 1.0}),
        "e": DRIVER,
    }
    minute = timedelta(seconds=60)
    assert shortest_periods(drivers) == {"thing": minute, "other": minute}
