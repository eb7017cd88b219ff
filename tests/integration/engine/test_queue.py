"""What a resource owes: order, superseding, cancel, delete."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from conveyor_runtime.errors import Conflict
from conveyor_runtime.models import DriverResult, Resource, ResourceRecord
from conveyor_runtime.reconcile import Driver, DriverLogger, RunContext
from conveyor_runtime.store import Put, keys
from tests.integration.engine.test_runs import recorder
from tests.support.cluster import Cluster


class Gate:
    """A driver whose reconcile waits until the test lets it go."""

    def __init__(self, name: str = "gate", **options: object) -> None:
        self.started: asyncio.Queue[tuple[str, str, int]] = asyncio.Queue()
        self.open = asyncio.Event()
        self.stopped: list[str] = []
        self.driver = Driver(name, ("thing",), self.reconcile, **options)  # type: ignore[arg-type]

    async def reconcile(
        self, payload: Resource, event: str, run_id: str, logger: DriverLogger, context: RunContext
    ) -> DriverResult:
        self.started.put_nowait((run_id, event, context.takeover))
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.stopped.append(run_id)
            raise
        return DriverResult(success=True)


async def test_of_three_puts_the_first_runs_the_second_is_superseded_the_third_runs_after(cluster: Cluster) -> None:
    gate = Gate()
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "gate")
    await cluster.add(gate.driver)
    first = await cluster.post("thing", "one", "p", x=0)
    await gate.started.get()
    second = await cluster.put("thing", "one", "p", x=1)
    third = await cluster.put("thing", "one", "p", x=2)
    superseded = await cluster.ended(second.run_id)
    assert superseded.status == "Cancelled"
    assert superseded.reason == f"superseded by {third.run_id}"
    assert [step.status for step in superseded.steps] == ["Skipped"]
    assert cluster.run(third.run_id).status == "Accepted"
    gate.open.set()
    assert (await cluster.ended(first.run_id)).status == "Succeeded"
    assert (await gate.started.get())[:2] == (third.run_id, "update")
    assert (await cluster.ended(third.run_id)).status == "Succeeded"


async def test_what_changes_nothing_makes_no_run_and_metadata_makes_only_a_revision(cluster: Cluster) -> None:
    calls: list[tuple[str, str]] = []
    await cluster.define("thing")
    await cluster.add(recorder("a", calls))
    await cluster.ended((await cluster.post("thing", "one", x=1)).run_id)
    same = await cluster.put("thing", "one", x=1)
    assert (same.run_id, same.changed, same.record.revision) == ("", False, 1)
    from conveyor_runtime.engine import Draft

    labelled = await cluster.intake.update(Draft("thing", "one", {"x": 1}, metadata={"team": "blue"}))
    assert (labelled.run_id, labelled.record.revision, labelled.record.generation) == ("", 2, 1)
    changed = await cluster.put("thing", "one", x=2)
    await cluster.ended(changed.run_id)
    assert calls == [("a", "create"), ("a", "update")]
    old = await cluster.state.version(changed.record.id, 1)
    assert old is not None and old.record.spec == {"x": 1} and old.record.metadata["version"] == "1"


async def test_cancel_stops_the_step_and_runs_finally(cluster: Cluster) -> None:
    gate = Gate()
    calls: list[tuple[str, str]] = []
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "gate", "after", finally_=("last",))
    await cluster.add(gate.driver)
    await cluster.add(recorder("after", calls))
    await cluster.add(recorder("last", calls))
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await gate.started.get()
    await cluster.intake.cancel(run_id, who="test", why="enough")
    run = await cluster.ended(run_id)
    assert run.status == "Cancelled" and "enough" in run.reason
    assert gate.stopped == [run_id]
    assert [step.status for step in run.steps] == ["Cancelled", "Skipped", "Succeeded"]
    assert calls == [("last", "create")]


async def test_cancel_of_a_step_nobody_claimed_ends_at_once(cluster: Cluster) -> None:
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "nobody")
    run_id = (await cluster.post("thing", "one", "p")).run_id
    assert cluster.run(run_id).status == "Pending"
    assert "nobody" in cluster.run(run_id).reason
    await cluster.intake.cancel(run_id, who="test", why="enough")
    assert (await cluster.ended(run_id)).status == "Cancelled"


async def test_cancel_of_a_direct_run_that_no_driver_takes_ends_at_once(cluster: Cluster) -> None:
    """Rule 13, where there is not even a plan yet."""
    await cluster.define("thing")
    run_id = (await cluster.post("thing", "one")).run_id
    await cluster.until(lambda: cluster.run(run_id).status == "Pending")
    await cluster.intake.cancel(run_id, who="test", why="enough")
    run = await cluster.ended(run_id)
    assert (run.status, run.reason) == ("Cancelled", "cancelled by test: enough")


async def test_a_step_that_no_worker_takes_in_time_times_out_and_finally_runs(cluster: Cluster) -> None:
    """Rule 6, whether its driver has never registered or has no process now."""
    calls: list[tuple[str, str]] = []
    await cluster.define("thing")
    await cluster.add(recorder("last", calls))
    for name in ("unknown", "absent"):
        await cluster.pipeline(name, "thing", name, finally_=("last",), queue_timeout=0.2)
    await cluster.stop(await cluster.add(recorder("absent", [], direct=False)))
    for name in ("unknown", "absent"):
        run = await cluster.ended((await cluster.post("thing", name, name)).run_id)
        assert (run.status, [step.status for step in run.steps]) == ("TimedOut", ["TimedOut", "Succeeded"])
        assert run.reason == f"step {name}: no worker took it within its queue_timeout of 0.2 s"
    assert calls == [("last", "create")] * 2


async def test_work_posted_before_any_driver_waits_for_it(cluster: Cluster) -> None:
    calls: list[tuple[str, str]] = []
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a")
    piped = (await cluster.post("thing", "one", "p")).run_id
    direct = (await cluster.post("thing", "two")).run_id
    assert cluster.run(piped).steps[0].message == "waits for a driver named a: none has ever registered"
    assert cluster.run(direct).reason == "waits for a driver that takes create of thing"
    await cluster.add(recorder("a", calls))
    assert (await cluster.ended(piped)).status == "Succeeded"
    assert (await cluster.ended(direct)).status == "Succeeded"


async def test_delete_during_a_run_cancels_it_and_hands_delete_to_who_asked(cluster: Cluster) -> None:
    gate = Gate()
    calls: list[tuple[str, str]] = []
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "gate", finally_=("last",))
    await cluster.add(gate.driver)
    await cluster.add(recorder("last", calls))
    await cluster.add(recorder("cleaner", calls, events="*"))
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await gate.started.get()
    deleted = await cluster.intake.delete("thing", "one")
    assert not deleted.gone
    with pytest.raises(Conflict, match="is being deleted"):
        await cluster.put("thing", "one", "p", x=9)
    assert (await cluster.intake.delete("thing", "one")).run_id == deleted.run_id
    await cluster.gone("thing", "one")
    assert cluster.run(run_id).status == "Cancelled"
    assert cluster.run(deleted.run_id).status == "Succeeded"
    assert calls == [("last", "create"), ("cleaner", "delete")]
    assert (await cluster.post("thing", "one", "p", x=1)).record.revision == 1


async def test_delete_without_anybody_to_ask_is_immediate(cluster: Cluster) -> None:
    await cluster.define("thing")
    await cluster.add(recorder("a", []))
    await cluster.ended((await cluster.post("thing", "one")).run_id)
    await cluster.put("thing", "one", x=1)
    await cluster.until(lambda: cluster.state.view.resource("thing", "one").record.active is None)  # type: ignore[union-attr]
    assert (await cluster.intake.delete("thing", "one")).gone
    assert await cluster.state.resource("thing", "one") is None


async def test_a_failed_delete_keeps_the_resource_until_another_succeeds(cluster: Cluster) -> None:
    tries: list[str] = []

    async def refuse_once(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
        if event == "delete":
            tries.append(run_id)
            return DriverResult(success=len(tries) > 1, message="not yet")
        return DriverResult(success=True)

    await cluster.define("thing")
    await cluster.add(Driver("a", ("thing",), refuse_once, events="*"))
    await cluster.ended((await cluster.post("thing", "one")).run_id)
    first = await cluster.intake.delete("thing", "one")
    assert (await cluster.ended(first.run_id)).status == "Failed"
    await cluster.until(lambda: cluster.state.view.resource("thing", "one").record.active is None)  # type: ignore[union-attr]
    second = await cluster.intake.delete("thing", "one")
    assert second.run_id != first.run_id
    await cluster.gone("thing", "one")


async def test_a_resync_goes_to_the_direct_driver_that_takes_it_when_its_period_is_over(cluster: Cluster) -> None:
    """Rules 2 and 4."""
    events: dict[str, list[str]] = {"a": [], "b": []}

    def noting(name: str, **options: object) -> Driver:
        async def note(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> None:
            events[name].append(event)

        return Driver(name, ("thing",), note, **options)  # type: ignore[arg-type]

    await cluster.define("thing")
    await cluster.add(noting("a", events=("create", "resync"), resync_period=0.001))
    await cluster.add(noting("b"))
    accepted = await cluster.post("thing", "one")
    await cluster.ended(accepted.run_id)
    resource = await cluster.until(lambda: _idle(cluster, accepted.run_id))
    assert resource.observed_generation == 1
    await cluster.sweep.sweep()
    await cluster.until(lambda: _idle(cluster) not in (None, resource))
    assert events == {"a": ["create", "resync"], "b": ["create"]}


async def test_a_resource_whose_run_is_lost_gets_another(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules 2 and 16."""
    monkeypatch.setattr("conveyor_runtime.engine.runs._LOST_AGE", timedelta(0))
    calls: list[tuple[str, str]] = []
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a")
    lost = (await cluster.post("thing", "one", "p")).run_id
    await cluster.state.commit(Put(keys.run(lost), None))
    await cluster.sweep.sweep()
    await cluster.until(lambda: _idle(cluster, lost))
    await cluster.add(recorder("a", calls))
    await cluster.sweep.sweep()
    await cluster.until(lambda: _idle(cluster) and len(calls) == 1)
    assert _idle(cluster, lost) is None


def _idle(cluster: Cluster, last_run: str | None = None) -> ResourceRecord | None:
    """The resource `thing/one` once it owes nothing, after the run `last_run`, if that is given."""
    found = cluster.state.view.resource("thing", "one")
    if found is None or found.record.entries or last_run not in (None, found.record.last_run):
        return None
    return found.record


async def test_requeue_runs_the_same_event_again_later(cluster: Cluster) -> None:
    runs: list[str] = []

    async def twice(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
        runs.append(f"{event} {run_id}")
        return DriverResult(success=True, requeue_after=0.2 if len(runs) == 1 else None)

    await cluster.define("thing")
    await cluster.add(Driver("a", ("thing",), twice))
    accepted = await cluster.post("thing", "one")
    await cluster.ended(accepted.run_id)
    await cluster.until(lambda: len(runs) == 2)
    assert [run.split()[0] for run in runs] == ["create", "create"]
    assert runs[1].split()[1] != accepted.run_id


async def test_a_delete_waits_visibly_for_a_driver_that_has_no_process(cluster: Cluster) -> None:
    """Rules 3 and 6."""
    run_id = await _delete_without_a_cleaner(cluster)
    calls: list[tuple[str, str]] = []
    await cluster.add(recorder("cleaner", calls, events=("delete",)))
    await cluster.gone("thing", "one")
    assert cluster.run(run_id).status == "Succeeded"
    assert calls == [("cleaner", "delete")]


async def test_a_delete_by_force_does_without_the_driver_it_waits_for(cluster: Cluster) -> None:
    """Rule 3."""
    waiting = await _delete_without_a_cleaner(cluster)
    forced = await cluster.intake.delete("thing", "one", force=True)
    assert forced.run_id != waiting
    await cluster.gone("thing", "one")
    assert cluster.run(waiting).status == "Cancelled"
    assert cluster.run(forced.run_id).status == "Succeeded"


async def test_a_delete_by_force_of_what_is_idle_is_immediate(cluster: Cluster) -> None:
    await cluster.define("thing")
    await cluster.add(recorder("cleaner", [], events="*"))
    await cluster.ended((await cluster.post("thing", "one")).run_id)
    await cluster.until(lambda: _idle(cluster))
    assert (await cluster.intake.delete("thing", "one", force=True)).gone


async def test_a_delete_by_force_is_last_all_the_same(cluster: Cluster) -> None:
    """Rule 3: the record is removed once the delete under way is terminal, which its worker is asked to end."""
    released = asyncio.Event()
    started: asyncio.Queue[str] = asyncio.Queue()

    async def reconcile(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> None:
        if event == "delete":
            started.put_nowait(run_id)
            try:
                await asyncio.Event().wait()
            finally:
                await released.wait()

    await cluster.define("thing")
    await cluster.add(Driver("a", ("thing",), reconcile, events="*"), kill_grace=10.0)
    await cluster.ended((await cluster.post("thing", "one")).run_id)
    first = await cluster.intake.delete("thing", "one")
    assert await started.get() == first.run_id
    forced = await cluster.intake.delete("thing", "one", force=True)
    assert (await cluster.intake.delete("thing", "one", force=True)).run_id == forced.run_id
    assert (await cluster.intake.delete("thing", "one")).run_id == forced.run_id
    await cluster.until(lambda: cluster.run(first.run_id).status == "Cancelling")
    assert cluster.run(forced.run_id).status == "Accepted"
    released.set()
    await cluster.gone("thing", "one")
    assert cluster.run(first.run_id).status == "Cancelled"
    assert cluster.run(forced.run_id).status == "Succeeded"
    assert started.empty()


async def _delete_without_a_cleaner(cluster: Cluster) -> str:
    """The delete of `thing/one`, seen to wait for a driver that once registered."""
    await cluster.define("thing")
    await cluster.stop(await cluster.add(recorder("cleaner", [], events=("delete",))))
    await cluster.post("thing", "one")
    run_id = (await cluster.intake.delete("thing", "one")).run_id
    await cluster.until(lambda: "waits for a cleaner process: none is running" in cluster.run(run_id).reason)
    found = cluster.state.view.resource("thing", "one")
    assert found is not None and found.record.deleting
    return run_id
