"""Who works on an open step, and what the engine does about it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from conveyor_runtime.engine import planner, steps
from conveyor_runtime.engine.nodes import NODE_GONE
from conveyor_runtime.engine.plans import Fleet
from conveyor_runtime.models import ENGINE, Claim, DriverRecord, PlannedStep, RunRecord, Status, StepState
from conveyor_runtime.store import Write, keys
from tests.unit.engine.world import NOW, Watcher

FLEET = Fleet({"d": DriverRecord(name="d", types=("thing",), nodes=("n1",))})
HOURS = 10**5


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> Watcher:
    watcher = Watcher(FLEET)
    monkeypatch.setattr("conveyor_runtime.engine.intray.stream_info", watcher.stream_info)
    monkeypatch.setattr("conveyor_runtime.engine.intray.consumer_info", watcher.consumer_info)
    return watcher


async def examine(
    watcher: Watcher, *, cancel: bool = False, finally_: bool = False, queue_timeout: float | None = None, **state: Any
) -> RunRecord:
    """Look once at step `s` of run `r`; the run afterwards."""
    known = watcher.view.run("r")
    if known is None:
        step = PlannedStep(id="s", driver="d", finally_=finally_, queue_timeout=queue_timeout)
        opened = StepState(attempt=1, issue=1, issued_at=NOW, **state)
        run = RunRecord(
            run_id="r", type="thing", name="one", event="create", generation=1, status=Status.RUNNING,
            plan=(step,), steps={"s": opened}, created_at=NOW,
        )  # fmt: skip
        await watcher.put(keys.run("r"), planner.cancel(run, "me", "enough", NOW) if cancel else run)
        known = watcher.view.run("r")
    assert known is not None
    [(step, opened)] = list(known.record.open_steps())
    return await watcher.ownership.examine(known.record, step, opened, lambda run_id, wait: watcher.looks.append(wait))


async def claim(watcher: Watcher, takeover: int = 0, **fields: Any) -> None:
    await watcher.put(keys.claim("r", "s", 1, takeover), Claim(**{"instance": "i", "node": "n1", "at": NOW, **fields}))


async def test_what_nobody_claimed_or_a_living_owner_has_is_left_alone(watcher: Watcher) -> None:
    run = await examine(watcher)
    await watcher.instance()
    await claim(watcher)
    assert await examine(watcher) is run and watcher.issued == []


@pytest.mark.parametrize(("fields", "deaths"), [({"ended": True}, 1), ({"gone": "x"}, 1)])
async def test_a_dead_owner_is_taken_over_from(watcher: Watcher, fields: dict[str, Any], deaths: int) -> None:
    """Rule 8."""
    await watcher.instance(**fields)
    await claim(watcher)
    state = (await examine(watcher)).steps["s"]
    assert (state.attempt, state.takeover, state.deaths, state.claimed_node) == (1, 1, deaths, "n1")
    assert watcher.issued == ["s.1.1.2"]


async def test_who_gave_up_is_taken_over_from_without_counting_a_death(watcher: Watcher) -> None:
    """Rules 7 and 8."""
    await watcher.instance()
    await claim(watcher, given_up=True)
    state = (await examine(watcher)).steps["s"]
    assert (state.takeover, state.deaths) == (1, 0)


async def test_nothing_is_taken_over_while_a_result_waits(watcher: Watcher) -> None:
    """Rule 8."""
    await watcher.instance(ended=True)
    await claim(watcher)
    watcher.results = {"taken_in": 4, "last": 9}
    before = await examine(watcher)
    assert before.steps["s"].takeover == 0 and watcher.looks == [0.1]
    watcher.results = {"taken_in": 8, "last": 12}
    assert (await examine(watcher)).steps["s"].takeover == 0
    watcher.results = {"taken_in": 9, "last": 12}
    assert (await examine(watcher)).steps["s"].takeover == 1, "what came later is no result of the dead"


async def test_who_came_back_and_died_again_is_waited_for_anew(watcher: Watcher) -> None:
    """Rule 8: what it published while it was back must be taken in first."""
    await watcher.instance(ended=True)
    await claim(watcher)
    watcher.results = {"taken_in": 4, "last": 5}
    await examine(watcher)
    await watcher.instance()
    await examine(watcher)
    await watcher.instance(ended=True)
    watcher.results = {"taken_in": 7, "last": 8}
    assert (await examine(watcher)).steps["s"].takeover == 0
    watcher.results = {"taken_in": 8, "last": 8}
    assert (await examine(watcher)).steps["s"].takeover == 1


async def test_who_renews_at_the_last_moment_is_not_taken_over_from(watcher: Watcher) -> None:
    """Rule 8: its lease came back while the engine read what waits."""
    await watcher.instance(ended=True)
    await claim(watcher)
    read = watcher.transitions.find

    async def renewed(run_id: str) -> Any:
        await watcher.instance()
        return await read(run_id)

    watcher.transitions.find = renewed  # type: ignore[method-assign]
    run = await examine(watcher)
    assert run.steps["s"].takeover == 0 and watcher.issued == []


async def test_the_fifth_death_ends_it_with_a_dead_letter(watcher: Watcher) -> None:
    """Rule 8."""
    await watcher.instance(ended=True)
    await claim(watcher)
    run = await examine(watcher, deaths=steps.MAX_DEATHS - 1)
    assert run.status is Status.ERROR and watcher.issued == []
    assert watcher.letters == ["5 workers died while they worked on it"]


@pytest.mark.parametrize(("deaths", "ends"), [(0, True), (1, False)])
async def test_an_attempt_is_not_handed_over_without_end(watcher: Watcher, deaths: int, ends: bool) -> None:
    """Rule 8: deaths have a limit of their own."""
    await watcher.instance()
    await claim(watcher, steps.MAX_HANDOVERS, given_up=True)
    run = await examine(watcher, takeover=steps.MAX_HANDOVERS, deaths=deaths)
    assert (run.status is Status.ERROR) is ends and watcher.letters == ["handed over 20 times"] * ends
    assert run.steps["s"].message == "handed over 20 times" * ends


# -- cancel ------------------------------------------------------------------------------------------------------


async def test_a_cancelled_step_nobody_has_is_claimed_by_the_engine_and_ended(watcher: Watcher) -> None:
    """Rule 13."""
    run = await examine(watcher, cancel=True)
    assert (run.status, run.steps["s"].message) == (Status.CANCELLED, "enough")
    known = watcher.view.claim("r", "s", 1, 0)
    assert known is not None and known.record.instance == ENGINE


@pytest.mark.parametrize("finally_", [False, True])
async def test_a_step_nobody_took_in_time_is_claimed_by_the_engine_and_ended(watcher: Watcher, finally_: bool) -> None:
    """Rule 6: by claiming, so that no worker can start it any more."""
    run = await examine(watcher, queue_timeout=90.0, queued_at=NOW - timedelta(seconds=90), finally_=finally_)
    assert (run.status, run.steps["s"].status) == (Status.TIMED_OUT, Status.TIMED_OUT)
    assert run.steps["s"].message == "no worker took it within its queue_timeout of 90 s"
    known = watcher.view.claim("r", "s", 1, 0)
    assert known is not None and (known.record.instance, known.record.timed_out) == (ENGINE, True)


async def test_a_step_is_looked_at_again_when_its_queue_timeout_is_over(watcher: Watcher) -> None:
    """Rule 6."""
    run = await examine(watcher, queue_timeout=90.0, queued_at=NOW - timedelta(seconds=60))
    assert not run.status.terminal and watcher.looks == [30.0]


async def test_a_step_that_a_worker_claimed_first_is_left_to_it(watcher: Watcher) -> None:
    """Rule 6: its queue timeout speaks of waiting only."""
    await watcher.instance()
    await claim(watcher)
    run = await examine(watcher, queue_timeout=90.0, queued_at=NOW - timedelta(hours=1))
    assert not run.status.terminal and watcher.looks == []


async def test_a_cancelled_step_somebody_has_is_left_to_its_owner(watcher: Watcher) -> None:
    """Rule 13."""
    await watcher.instance()
    await claim(watcher)
    assert not (await examine(watcher, cancel=True)).status.terminal
    await watcher.instance(ended=True)
    watcher.results = {"taken_in": 0, "last": 1}
    assert not (await examine(watcher)).status.terminal, "its result may be waiting"
    watcher.results = {"taken_in": 1, "last": 1}
    run = await examine(watcher)
    assert (run.status, run.steps["s"].claimed_node) == (Status.CANCELLED, "n1")
    assert watcher.issued == []


async def test_a_claim_the_view_has_not_seen_is_no_dead_owners(watcher: Watcher) -> None:
    """Rule 13: the store knows of a claim (and its instance) a moment before our view does."""
    await watcher.view.start()
    await examine(watcher)
    from conveyor_runtime.models import Instance

    instance = Instance(id="new", driver="d", started_at=NOW, renewed_at=NOW)
    await watcher.view._store.commit([Write(keys.instance("new"), instance.encode())])
    await watcher.view._store.commit([Write(keys.claim("r", "s", 1, 0), Claim(instance="new", at=NOW).encode())])
    found = watcher.view.run("r")
    assert found is not None and watcher.view.claim("r", "s", 1, 0) is None
    await watcher.put(keys.run("r"), planner.cancel(found.record, "me", "enough", NOW))
    assert not (await examine(watcher)).status.terminal
    await watcher.view.stop()


async def test_a_cancel_written_meanwhile_stops_a_takeover(watcher: Watcher) -> None:
    """Rule 13."""
    await watcher.instance(ended=True)
    await claim(watcher)
    watcher.results = {"taken_in": 0, "last": 1}
    run = await examine(watcher)
    watcher.results = {"taken_in": 1, "last": 1}
    await watcher.put(keys.run("r"), planner.cancel(run, "me", "enough", NOW))
    [(step, state)] = list(run.open_steps())
    after = await watcher.ownership.examine(run, step, state, lambda run_id, wait: None)
    assert after.steps["s"].takeover == 0 and watcher.issued == []
    assert (await examine(watcher)).status is Status.CANCELLED


# -- timeouts and nodes ------------------------------------------------------------------------------------------


async def test_a_stuck_timeout_ends_once_its_process_has(watcher: Watcher) -> None:
    """Rule 14."""
    await watcher.instance()
    await claim(watcher, timed_out=True)
    assert not (await examine(watcher)).status.terminal
    await watcher.instance(ended=True)
    run = await examine(watcher)
    assert (run.status, run.steps["s"].takeover) == (Status.TIMED_OUT, 0)


@pytest.mark.parametrize(("finally_", "status"), [(False, Status.ERROR), (True, Status.SKIPPED)])
async def test_a_step_whose_node_is_gone_ends(watcher: Watcher, finally_: bool, status: Status) -> None:
    """Rule 5."""
    await examine(watcher, node="n1", finally_=finally_)
    await watcher.pass_time(NODE_GONE - 1)
    assert not (await examine(watcher)).status.terminal
    await watcher.pass_time(2)
    state = (await examine(watcher)).steps["s"]
    assert (state.status, state.message) == (status, "node gone: no d has run on n1 for 10 minutes")


async def test_a_node_is_gone_by_its_last_absence_only(watcher: Watcher) -> None:
    """Rule 5: nobody looked at such a step while the driver was there."""
    await examine(watcher, node="n1")
    await watcher.pass_time(60)
    await watcher.instance(nodes=("n1",))
    await watcher.pass_time(NODE_GONE)
    await watcher.instance(nodes=("n1",), ended=True)
    await watcher.pass_time(1)
    assert not (await examine(watcher)).status.terminal
    await watcher.pass_time(NODE_GONE)
    assert (await examine(watcher)).status is Status.ERROR


async def test_a_step_whose_node_is_gone_but_that_was_claimed_is_handed_over_first(watcher: Watcher) -> None:
    """Rule 5: results count before that."""
    await watcher.instance(ended=True)
    await claim(watcher)
    await examine_after_gone(watcher)
    assert watcher.issued == ["s.1.1.2"]


async def examine_after_gone(watcher: Watcher) -> None:
    watcher.results = {"taken_in": 0, "last": 1}
    await examine(watcher, node="n1")
    await watcher.pass_time(NODE_GONE + 1)
    watcher.results = {"taken_in": 1, "last": 1}
    assert not (await examine(watcher)).status.terminal
