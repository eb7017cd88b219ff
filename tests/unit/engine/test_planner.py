"""The planner as tables: what goes in, what comes out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conveyor_runtime.engine import planner, plans, steps
from conveyor_runtime.engine.plans import Fleet
from conveyor_runtime.models import (
    LONGEST_REQUEUE,
    Claim,
    DriverRecord,
    Entry,
    PipelineSpec,
    PlannedStep,
    ResourceRecord,
    RunRecord,
    Status,
    StepResult,
    StepState,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def record(name: str, **fields: Any) -> DriverRecord:
    return DriverRecord(name=name, types=("thing",), **fields)


def fleet(*names: str, **records: DriverRecord) -> Fleet:
    return Fleet({**{name: record(name) for name in names}, **records})


def sandboxes(*names: str, nodes: tuple[str, ...] = ("n1", "n2")) -> Fleet:
    return Fleet({name: record(name, sandbox=True, nodes=nodes) for name in names})


def chain(*drivers: str, last: tuple[str, ...] = ()) -> tuple[PlannedStep, ...]:
    spec = {
        "resource": "thing",
        "steps": [{"id": driver, "driver": driver} for driver in drivers],
        "finally": [{"id": driver, "driver": driver} for driver in last],
    }
    return plans.plan_pipeline(PipelineSpec.model_validate(spec))


def run_of(plan: tuple[PlannedStep, ...] | None, **fields: Any) -> RunRecord:
    base = {"run_id": "r", "type": "thing", "name": "one", "event": "create", "generation": 1, "created_at": NOW}
    return RunRecord.model_validate({**base, "status": Status.ACCEPTED, **fields}).model_copy(update={"plan": plan})


def result(run: RunRecord, step: str, status: Status = Status.SUCCEEDED, **fields: Any) -> StepResult:
    state = run.steps[step]
    numbers = {"run_id": "r", "step": step, "attempt": state.attempt, "takeover": state.takeover}
    return StepResult.model_validate({**numbers, "status": status, "instance": "i", **fields})


def take(run: RunRecord, step: str, status: Status = Status.SUCCEEDED, *, at: Fleet, **fields: Any) -> RunRecord:
    after = planner.apply_result(run, result(run, step, status, **fields), NOW, jitter=1.0)
    assert after is not None
    return planner.advance(after, at, NOW)


def statuses(run: RunRecord) -> dict[str, str]:
    return {step.id: run.steps.get(step.id, StepState()).status.value for step in run.plan or ()}


ABZ = fleet("a", "b", "z")


def started(*drivers: str, last: tuple[str, ...] = (), at: Fleet | None = None) -> RunRecord:
    return planner.advance(run_of(chain(*drivers, last=last)), at or fleet(*drivers, *last), NOW)


# -- opening -----------------------------------------------------------------------------------------------------


def test_only_the_first_step_is_opened() -> None:
    run = started("a", "b", last=("z",))
    assert list(run.steps) == ["a"]
    assert (run.steps["a"].attempt, run.steps["a"].issue, run.steps["a"].open) == (1, 1, True)
    assert [step.id for step, _ in steps.newly_issued(None, run)] == ["a"]
    assert list(steps.newly_issued(run, run)) == []


def test_a_step_without_a_driver_is_opened_but_not_issued_until_one_registers() -> None:
    """Rule 6."""
    run = started("a", at=fleet())
    assert (run.steps["a"].attempt, run.steps["a"].issue) == (1, 0)
    assert planner.advance(run, fleet("b"), NOW) is run
    after = planner.advance(run, fleet("a"), LATER)
    assert (after.steps["a"].issue, after.steps["a"].issued_at) == (1, LATER)
    assert [step.id for step, _ in steps.newly_issued(run, after)] == ["a"]


def test_a_run_without_a_plan_waits_and_one_with_an_empty_plan_succeeds() -> None:
    waiting = run_of(None)
    assert planner.advance(waiting, ABZ, NOW) is waiting
    assert planner.advance(run_of(()), ABZ, NOW).status is Status.SUCCEEDED


def test_a_terminal_run_never_changes() -> None:
    run = take(started("a"), "a", at=fleet("a"))
    assert run.status is Status.SUCCEEDED and run.finished_at == NOW
    assert planner.advance(run, ABZ, LATER) is run
    assert planner.cancel(run, "me", "late", NOW) is run
    assert planner.end_unstarted(run, "late", NOW) is run
    assert planner.apply_result(run, result(run, "a"), NOW) is None


# -- results -----------------------------------------------------------------------------------------------------

BAD = [Status.FAILED, Status.ERROR, Status.TIMED_OUT, Status.CANCELLED]


@pytest.mark.parametrize("bad", BAD)
def test_what_follows_a_bad_step_is_skipped_and_finally_runs(bad: Status) -> None:
    run = take(started("a", "b", last=("z",)), "a", bad, at=ABZ, message="it broke")
    assert statuses(run) == {"a": bad, "b": "Skipped", "z": "Pending"}
    assert run.steps["b"].message == "step a did not succeed"
    run = take(run, "z", at=ABZ)
    assert (run.status, run.reason) == (bad, "step a: it broke")


@pytest.mark.parametrize("good", [Status.SUCCEEDED, Status.SKIPPED])
def test_what_follows_a_step_that_did_no_harm_runs(good: Status) -> None:
    run = take(started("a", "b"), "a", good, at=ABZ)
    assert statuses(run) == {"a": good, "b": "Pending"}
    assert take(run, "b", at=ABZ).status is Status.SUCCEEDED


def test_a_bad_finally_step_makes_a_good_run_bad_but_never_hides_what_went_wrong_before() -> None:
    good = take(started("a", last=("z",)), "a", at=ABZ)
    assert take(good, "z", Status.FAILED, at=ABZ, message="no").reason == "step z: no"
    bad = take(started("a", last=("z",)), "a", Status.TIMED_OUT, at=ABZ)
    assert take(bad, "z", Status.FAILED, at=ABZ).status is Status.TIMED_OUT


def test_finally_steps_run_one_after_another_even_if_one_is_bad() -> None:
    everybody = fleet("a", "y", "z")
    run = take(started("a", last=("y", "z"), at=everybody), "a", at=everybody)
    assert statuses(run) == {"a": "Succeeded", "y": "Pending", "z": "Pending"}
    run = take(run, "y", Status.FAILED, at=everybody)
    assert run.steps["z"].open
    assert take(run, "z", at=everybody).status is Status.FAILED


@pytest.mark.parametrize(
    "numbers",
    [{"attempt": 2}, {"attempt": 0}, {"takeover": 1}, {"step": "b"}, {"step": "nobody"}, {"run_id": "other"}],
)
def test_a_result_with_other_numbers_changes_nothing(numbers: dict[str, Any]) -> None:
    """Rule 10."""
    run = started("a", "b")
    other = result(run, "a").model_copy(update=numbers)
    assert planner.apply_result(run, other, NOW) is None


def test_a_second_result_changes_nothing() -> None:
    run = started("a", "b")
    said = result(run, "a", Status.FAILED)
    assert planner.apply_result(take(run, "a", at=ABZ), said, NOW) is None


@pytest.mark.parametrize("status", [status for status in Status if not status.terminal])
def test_a_result_that_is_no_end_is_an_error(status: Status) -> None:
    run = take(started("a"), "a", status, at=ABZ)
    assert run.status is Status.ERROR and "which is no end" in run.reason


def test_a_foreign_result_keeps_when_its_work_began() -> None:
    run = started("a")
    begun = run.steps["a"].model_copy(update={"started_at": NOW})
    run = run.model_copy(update={"steps": {"a": begun}})
    assert take(run, "a", at=ABZ).steps["a"].started_at == NOW


@pytest.mark.parametrize(("asked", "kept"), [(5.0, 5.0), (0.0, 0.0), (-3.0, 0.0), (1e300, LONGEST_REQUEUE)])
def test_a_requeue_is_kept_within_bounds(asked: float, kept: float) -> None:
    assert take(started("a"), "a", at=ABZ, requeue_after=asked).requeue_after == kept


# -- retries -----------------------------------------------------------------------------------------------------


def test_a_retryable_error_is_tried_again_with_growing_waits_up_to_the_limit() -> None:
    run, at, waits = started("a", "b"), NOW, []
    for attempt in (1, 2):
        said = result(run, "a", Status.ERROR, retryable=True, message="boom", node="n1")
        after = planner.apply_result(run, said, at, jitter=1.0)
        assert after is not None
        state = after.steps["a"]
        assert (state.status, state.attempt, state.finished_at) == (Status.AWAITING_RETRY, attempt, None)
        assert state.due is not None
        waits.append((state.due - at).total_seconds())
        early = planner.advance(after, ABZ, state.due - timedelta(microseconds=1))
        assert early.steps["a"].status is Status.AWAITING_RETRY and early.steps["a"].attempt == attempt
        at = state.due
        run = planner.advance(after, ABZ, at)
        assert (run.steps["a"].attempt, run.steps["a"].takeover, run.steps["a"].issue) == (attempt + 1, 0, 1)
        assert run.steps["a"].claimed_node == "n1"
    assert waits == [planner.RETRY_INITIAL, planner.RETRY_INITIAL * 2]
    assert take(run, "a", Status.ERROR, at=ABZ, retryable=True).status is Status.ERROR


def test_a_cancelled_run_retries_nothing_but_finally_steps() -> None:
    cancelled = planner.cancel(started("a", last=("z",)), "me", "why", NOW)
    run = take(cancelled, "a", Status.ERROR, at=ABZ, retryable=True)
    assert run.steps["a"].status is Status.ERROR
    run = take(run, "z", Status.ERROR, at=ABZ, retryable=True)
    assert run.steps["z"].status is Status.AWAITING_RETRY and not run.status.terminal


# -- cancel ------------------------------------------------------------------------------------------------------


def test_the_first_to_cancel_counts() -> None:
    run = planner.cancel(started("a"), "me", "enough", NOW)
    assert planner.cancel(run, "you", "too", NOW) is run
    assert run.cancel is not None and run.cancel.who == "me"


def test_cancel_while_a_step_is_open_leaves_it_to_its_owner_and_skips_the_rest() -> None:
    """Rule 13."""
    run = planner.advance(planner.cancel(started("a", "b", last=("z",)), "me", "enough", NOW), ABZ, NOW)
    assert run.steps["a"].open and "b" not in run.steps
    ended = planner.advance(planner.end_step(run, "a", Status.CANCELLED, "stopped", NOW), ABZ, NOW)
    assert statuses(ended) == {"a": "Cancelled", "b": "Skipped", "z": "Pending"}
    ended = take(ended, "z", at=ABZ)
    assert (ended.status, ended.reason) == (Status.CANCELLED, "cancelled by me: enough")


def test_cancel_while_a_retry_waits_ends_it_at_once() -> None:
    run = take(started("a", "b"), "a", Status.ERROR, at=ABZ, retryable=True)
    run = planner.advance(planner.cancel(run, "me", "enough", NOW), ABZ, NOW)
    assert statuses(run) == {"a": "Cancelled", "b": "Skipped"} and run.status is Status.CANCELLED


def test_a_cancelled_step_is_never_issued_reissued_or_taken_over() -> None:
    """Rule 13."""
    run = planner.cancel(started("a", at=fleet()), "me", "enough", NOW)
    assert run.steps["a"].issue == 0
    assert planner.advance(run, ABZ, NOW) is run
    assert planner.reissue(run, "a", ABZ, NOW) is run
    assert planner.take_over(run, "a", "n1", died=True, fleet=ABZ, now=NOW) is run


def test_cancel_does_not_speak_of_finally_steps() -> None:
    """Rule 13."""
    run = planner.cancel(take(started("a", last=("z",)), "a", at=ABZ), "me", "enough", NOW)
    assert planner.take_over(run, "z", None, died=True, fleet=ABZ, now=NOW).steps["z"].takeover == 1
    assert planner.reissue(run, "z", ABZ, NOW).steps["z"].issue == 2
    assert take(run, "z", at=ABZ).status is Status.SUCCEEDED


def test_a_step_that_was_faster_than_its_cancel_keeps_its_word() -> None:
    run = planner.cancel(started("a"), "me", "enough", NOW)
    assert take(run, "a", at=ABZ).status is Status.SUCCEEDED
    assert take(run, "a", Status.FAILED, at=ABZ).status is Status.FAILED


def test_a_run_that_never_became_active_ends_with_everything_skipped() -> None:
    """Rule 2."""
    run = planner.end_unstarted(run_of(chain("a", last=("z",))), "superseded by x", NOW)
    assert statuses(run) == {"a": "Skipped", "z": "Skipped"}
    assert (run.status, run.reason, run.finished_at) == (Status.CANCELLED, "superseded by x", NOW)
    assert planner.end_unstarted(run_of(None), "x", NOW).status is Status.CANCELLED


def test_a_run_with_an_open_step_is_never_ended_as_unstarted() -> None:
    run = started("a", last=("z",))
    assert planner.end_unstarted(run, "x", NOW) is run


# -- takeover ----------------------------------------------------------------------------------------------------


def test_a_takeover_is_a_new_dispatch_of_the_same_attempt() -> None:
    run = started("a")
    after = planner.take_over(run, "a", "n1", died=False, fleet=ABZ, now=LATER)
    state = after.steps["a"]
    assert (state.attempt, state.takeover, state.deaths, state.issue, state.claimed_node) == (1, 1, 0, 2, "n1")
    assert [step.id for step, _ in steps.newly_issued(run, after)] == ["a"]


def test_only_deaths_count_towards_the_limit() -> None:
    """Rule 8."""
    run = started("a")
    for _ in range(20):
        run = planner.take_over(run, "a", None, died=False, fleet=ABZ, now=NOW)
    assert run.steps["a"].open and run.steps["a"].takeover == 20
    for died in range(1, steps.MAX_DEATHS):
        run = planner.take_over(run, "a", None, died=True, fleet=ABZ, now=NOW)
        assert run.steps["a"].open and run.steps["a"].deaths == died
    run = planner.advance(planner.take_over(run, "a", None, died=True, fleet=ABZ, now=NOW), ABZ, NOW)
    assert (run.status, run.reason) == (Status.ERROR, "step a: 5 workers died while they worked on it")


def test_from_the_second_death_on_a_takeover_waits_longer_each_time() -> None:
    """Rule 8: what died beside the culprit comes back at another time than that does."""
    plan = (PlannedStep(id="a", driver="a", queue_timeout=90.0),)
    run, at, waits = planner.advance(run_of(plan), ABZ, NOW), NOW, []
    run = planner.take_over(run, "a", None, died=True, fleet=ABZ, now=at)
    assert (run.steps["a"].issue, run.steps["a"].due) == (2, None), "one death is no reason"
    for deaths in range(2, steps.MAX_DEATHS):
        before, run = run, planner.take_over(run, "a", "n1", died=True, fleet=ABZ, now=at, jitter=1.0)
        state = run.steps["a"]
        assert (state.takeover, state.deaths, state.issue, state.open) == (deaths, deaths, 0, True)
        assert state.due is not None and state.goes_on_at == state.queued_at == state.due
        assert list(steps.newly_issued(before, run)) == []
        waits.append((state.due - at).total_seconds())
        assert planner.advance(run, ABZ, state.due - timedelta(microseconds=1)) is run
        at = state.due
        run = planner.advance(run, ABZ, at)
        assert (run.steps["a"].issue, run.steps["a"].issued_at, run.steps["a"].due) == (1, at, None)
    assert waits == [10.0, 20.0, 40.0]


def test_a_takeover_that_waited_in_vain_for_its_driver_is_issued_when_that_is_back() -> None:
    run = started("a")
    for _ in range(planner.DEATHS_TO_WAIT):
        run = planner.take_over(run, "a", None, died=True, fleet=ABZ, now=NOW)
    run = planner.advance(run, fleet(), LATER)
    assert (run.steps["a"].issue, run.steps["a"].goes_on_at) == (0, None), "there is no time to wait for any more"
    assert planner.advance(run, ABZ, LATER).steps["a"].issue == 1


def test_a_takeover_that_waits_is_neither_issued_nor_waited_for_once_it_is_cancelled() -> None:
    """Rule 13."""
    run = started("a")
    for _ in range(planner.DEATHS_TO_WAIT):
        run = planner.take_over(run, "a", None, died=True, fleet=ABZ, now=NOW)
    run = planner.cancel(run, "me", "enough", NOW)
    assert planner.advance(run, ABZ, LATER).steps["a"].issue == 0


# -- nodes -------------------------------------------------------------------------------------------------------


def test_a_step_goes_to_the_node_of_the_nearest_sandbox_before_it() -> None:
    """Rule 5."""
    at = Fleet({**sandboxes("a", "c").drivers, "b": record("b")})
    run = take(planner.advance(run_of(chain("a", "b", "c")), at, NOW), "a", at=at, node="n2")
    assert run.steps["a"].node is None and run.steps["b"].node is None
    run = take(run, "b", at=at, node="elsewhere")
    assert run.steps["c"].node == "n2" and run.steps["c"].issue == 1


def test_steps_in_sandboxes_go_to_the_node_of_the_service() -> None:
    """Rule 5."""
    at = Fleet({**sandboxes("a", "c").drivers, "b": record("b")})
    run = take(planner.advance(run_of(chain("a", "b", "c"), home="n3"), at, NOW), "a", at=at, node="n3")
    assert (run.steps["a"].node, run.steps["b"].node) == ("n3", None)


def test_two_nodes_to_meet_are_an_error() -> None:
    """Rule 5."""
    plan = (
        PlannedStep(id="a", driver="a"),
        PlannedStep(id="b", driver="b"),
        PlannedStep(id="c", driver="c", needs=("a", "b")),
    )
    at = sandboxes("a", "b", "c")
    run = planner.advance(run_of(plan), at, NOW)
    run = take(take(run, "a", at=at, node="n1"), "b", at=at, node="n2")
    assert (run.status, run.reason) == (
        Status.ERROR,
        "step c: it must meet sandboxes on different nodes: n1, n2",
    )
    assert run.steps["c"].issue == 0


def test_a_finally_step_goes_where_the_last_sandbox_was_also_without_a_result() -> None:
    """Rule 5."""
    at = sandboxes("a", "z")
    run = planner.advance(run_of(chain("a", last=("z",))), at, NOW)
    run = planner.take_over(run, "a", "n1", died=True, fleet=at, now=NOW)
    claim = Claim(instance="i", node="n2", at=NOW)
    run = planner.advance(planner.end_step(run, "a", Status.CANCELLED, "gone", NOW, claim=claim), at, NOW)
    assert run.steps["z"].node == "n2"


def test_a_finally_step_with_no_sandbox_to_meet_goes_anywhere() -> None:
    at = Fleet({"a": record("a"), **sandboxes("z").drivers})
    run = take(planner.advance(run_of(chain("a", last=("z",))), at, NOW), "a", at=at, node="host")
    assert (run.steps["z"].node, run.steps["z"].issue) == (None, 1)


def test_a_node_nobody_serves_keeps_the_dispatch_back() -> None:
    at = sandboxes("a", "b", nodes=("n1",))
    run = take(planner.advance(run_of(chain("a", "b")), at, NOW), "a", at=at, node="n9")
    assert (run.steps["b"].node, run.steps["b"].issue) == ("n9", 0)


# -- plans -------------------------------------------------------------------------------------------------------


def test_the_plan_of_a_pipeline() -> None:
    plan = chain("a", "b", last=("y", "z"))
    assert [(step.id, step.needs, step.finally_) for step in plan] == [
        ("a", (), False),
        ("b", ("a",), False),
        ("y", (), True),
        ("z", ("y",), True),
    ]


def test_a_direct_run_has_one_parallel_step_per_driver_that_takes_the_event() -> None:
    """Rule 4."""
    at = fleet(
        b=record("b"),
        a=record("a", events=("*",)),
        indirect=record("indirect", direct=False),
        other=DriverRecord(name="other", types=("else",)),
        goner=record("goner", events=("delete",)),
    )
    assert [(it.id, it.needs) for it in plans.plan_direct("thing", "create", at)] == [("a", ()), ("b", ())]
    assert [it.id for it in plans.plan_direct("thing", "delete", at)] == ["a", "goner"]
    run = planner.advance(run_of(plans.plan_direct("thing", "create", at)), at, NOW)
    assert {step.id for step, _ in run.open_steps()} == {"a", "b"}


def test_a_delete_goes_backwards_through_who_asked_for_it_each_once() -> None:
    everything = ("*",)
    at = fleet(
        start=record("start", events=everything, direct=False),
        build=record("build", direct=False),
        stop=record("stop", events=everything, direct=False),
        listener=record("listener", events=("delete",)),
    )
    plan = plans.plan_delete("thing", chain("start", "build", "stop"), at)
    assert [(it.id, it.needs) for it in plan] == [("stop", ()), ("start", ("stop",)), ("listener", ("start",))]
    assert plans.plan_delete("thing", (), fleet("a")) == ()


def test_a_worker_is_waited_for_anew_at_each_attempt_and_takeover() -> None:
    """Rule 6, and what is published once more is waited for no longer."""
    steps_ = [{"driver": "a", "queue_timeout": "90s"}, {"driver": "b"}]
    plan = plans.plan_pipeline(PipelineSpec.model_validate({"resource": "thing", "steps": steps_}).with_ids())
    at = fleet("a", "b")
    run = planner.advance(run_of(plan), at, NOW)
    assert (plan[0].queue_timeout, run.steps["a"].queued_at) == (90.0, NOW)
    assert planner.reissue(run, "a", at, LATER).steps["a"].queued_at == NOW
    assert planner.take_over(run, "a", None, died=True, fleet=at, now=LATER).steps["a"].queued_at == LATER
    failed = take(run, "a", Status.ERROR, at=at, retryable=True)
    assert failed.steps["a"].status is Status.AWAITING_RETRY
    assert planner.advance(failed, at, LATER).steps["a"].queued_at == LATER
    assert take(run, "a", at=at).steps["b"].queued_at is None


def test_when_a_delete_may_remove_the_record() -> None:
    """Rule 3."""
    resource = ResourceRecord(
        id="i",
        type="thing",
        name="one",
        created_at=NOW,
        updated_at=NOW,
        deleting=True,
        active=Entry(run_id="r", event="delete", generation=1),
    )
    done = run_of((), event="delete", status=Status.SUCCEEDED)
    assert steps.delete_succeeded(resource, done)
    assert not steps.delete_succeeded(resource, done.model_copy(update={"requeue_after": 1.0}))
    assert not steps.delete_succeeded(resource, done.model_copy(update={"status": Status.FAILED}))
    assert not steps.delete_succeeded(resource, done.model_copy(update={"run_id": "another"}))
    assert not steps.delete_succeeded(resource.model_copy(update={"deleting": False}), done)
    forced = Entry(run_id="forced", event="delete", generation=1)
    assert not steps.delete_succeeded(resource.model_copy(update={"queue": (forced,)}), done)


# -- whatever happens --------------------------------------------------------------------------------------------

ACTIONS = st.tuples(
    st.sampled_from(["result", "stale", "takeover", "died", "cancel", "engine", "reissue", "tick", "drivers"]),
    st.integers(0, 7),
    st.sampled_from([*BAD, Status.SUCCEEDED, Status.SKIPPED]),
    st.booleans(),
)
PLANS = st.sampled_from(
    [chain("a"), chain("a", "b", last=("z",)), chain("a", "b", "c", last=("y", "z")), chain(last=("z",))]
)


def act(run: RunRecord, action: str, number: int, status: Status, flag: bool, at: Fleet, now: datetime) -> RunRecord:
    """One thing that may happen to a run."""
    if action == "cancel":
        return planner.cancel(run, "me", "why", now)
    opened = list(run.open_steps())
    if not opened:
        return run
    step, _ = opened[number % len(opened)]
    if action == "result":
        return planner.apply_result(run, result(run, step.id, status, retryable=flag, node="n1"), now) or run
    if action == "stale":
        stale = result(run, step.id, status).model_copy(update={"takeover": 99})
        assert planner.apply_result(run, stale, now) is None
    if action in ("takeover", "died"):
        return planner.take_over(run, step.id, "n1", died=action == "died", fleet=at, now=now)
    if action == "engine":
        return planner.end_step(run, step.id, Status.CANCELLED if flag else Status.ERROR, "engine", now)
    return planner.reissue(run, step.id, at, now) if action == "reissue" else run


def check(before: RunRecord, after: RunRecord) -> None:
    for step_id, state in before.steps.items():
        if state.status.terminal:
            assert after.steps[step_id] == state, "a step that has ended changed"
        else:
            assert (after.steps[step_id].attempt, after.steps[step_id].takeover) >= (state.attempt, state.takeover)
    if after.status.terminal:
        assert all(after.steps[step.id].status.terminal for step in after.plan or ())
        assert after.finished_at is not None
    if after.cancel is not None:
        new = {step.id for step, _ in steps.newly_issued(before, after)}
        assert all(step.finally_ for step in after.plan or () if step.id in new) or before.cancel is None


@settings(max_examples=400, deadline=None)
@given(plan=PLANS, actions=st.lists(ACTIONS, max_size=40))
def test_whatever_happens_a_run_ends_once_and_whole(
    plan: tuple[PlannedStep, ...], actions: list[tuple[str, int, Status, bool]]
) -> None:
    everybody, now = fleet(*"abcyz"), NOW
    at = everybody
    run = planner.advance(run_of(plan), at, now)
    for action, number, status, flag in actions:
        now += timedelta(seconds=number)
        at = (fleet("a") if flag else everybody) if action == "drivers" else at
        after = planner.advance(act(run, action, number, status, flag, at, now), at, now)
        check(run, after)
        run = after
    # From wherever that led, ordinary work ends it.
    for _ in range(len(plan) * planner.MAX_ATTEMPTS * 2 + 1):
        now += timedelta(minutes=5)
        run = planner.advance(run, everybody, now)
        for step, _ in list(run.open_steps()):
            run = planner.apply_result(run, result(run, step.id), now) or run
    run = planner.advance(run, everybody, now)
    assert run.status.terminal


# -- nothing to clean up -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("drivers", [(), ("a",)])
def test_a_finally_step_nobody_can_do_is_skipped_when_nothing_was_begun(drivers: tuple[str, ...]) -> None:
    run = planner.advance(run_of(chain("a", "b", last=("z",))), fleet(*drivers), NOW)
    run = planner.cancel(run, "me", "enough", NOW)
    run = planner.end_step(run, "a", Status.CANCELLED, "enough", NOW)
    run = planner.advance(run, fleet(*drivers), NOW)
    assert run.status is Status.CANCELLED and run.steps["z"].status is Status.SKIPPED
    assert run.steps["z"].message == "no worker has begun this run, and the driver z has never registered"


def test_a_finally_step_that_waits_already_is_skipped_too() -> None:
    ended = StepState(status=Status.CANCELLED, attempt=1, finished_at=NOW)
    waiting = {"a": ended, "z": StepState(attempt=1)}
    run = run_of(chain("a", last=("z",))).model_copy(update={"steps": waiting, "status": Status.RUNNING})
    assert planner.advance(run, fleet(), NOW).steps["z"].status is Status.SKIPPED


@pytest.mark.parametrize(
    ("trace", "at"),
    [
        ({"claimed_node": "n1"}, fleet("a")),
        ({"instance": "i"}, fleet("a")),
        ({"started_at": NOW}, fleet("a")),
        ({"takeover": 1}, fleet("a")),
        ({"attempt": 2}, fleet("a")),
        ({"status": Status.SUCCEEDED}, fleet("a")),
        ({}, fleet("a", "z")),
        ({}, Fleet({}, frozenset({"z"}))),
    ],
)
def test_a_finally_step_is_waited_for_where_something_was_begun_or_its_driver_is_known(
    trace: dict[str, Any], at: Fleet
) -> None:
    ended = StepState.model_validate({"status": Status.CANCELLED, "attempt": 1, "finished_at": NOW, **trace})
    run = run_of(chain("a", last=("z",))).model_copy(update={"steps": {"a": ended}, "status": Status.RUNNING})
    assert planner.advance(run, at, NOW).steps["z"].open
