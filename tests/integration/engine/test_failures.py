"""What goes wrong: in user code, in its process, on the bus."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import orjson
import pytest

from conveyor_runtime.bus import Message
from conveyor_runtime.bus.messages import next_by_subject
from conveyor_runtime.bus.streams import MESSAGES
from conveyor_runtime.engine import runs
from conveyor_runtime.errors import ConfigError, TaskFailed, TaskTimedOut, TerminalError
from conveyor_runtime.models import Claim, DriverResult, Instance, Resource, utc_now
from conveyor_runtime.reconcile import Driver, DriverLogger, RunContext
from conveyor_runtime.store import Put, keys
from tests.integration.engine.test_queue import Gate
from tests.integration.engine.test_runs import recorder
from tests.support.cluster import Cluster


@pytest.mark.parametrize(
    ("raised", "status", "attempts"),
    [
        (TaskFailed("tests failed", exit_code=7), "Failed", 1),
        (TerminalError("bad input"), "Failed", 1),
        (TaskTimedOut("too slow"), "TimedOut", 1),
        (RuntimeError("boom"), "Error", 3),
    ],
)
async def test_how_a_step_fails(
    cluster: Cluster, raised: Exception, status: str, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor_runtime.engine.planner.RETRY_INITIAL", 0.05)
    calls: list[tuple[str, str]] = []

    async def fail(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
        calls.append(("a", event))
        raise raised

    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a", "b", finally_=("z",))
    await cluster.add(Driver("a", ("thing",), fail))
    await cluster.add(recorder("b", calls))
    await cluster.add(recorder("z", calls))
    run = await cluster.ended((await cluster.post("thing", "one", "p")).run_id)
    assert run.status == status
    assert str(raised) in run.reason
    assert [step.status for step in run.steps] == [status, "Skipped", "Succeeded"]
    assert run.steps[0].attempt == attempts
    assert calls == [("a", "create")] * attempts + [("z", "create")]
    assert run.steps[0].exit_code == getattr(raised, "exit_code", None)


async def test_a_step_that_outlives_its_timeout_is_cancelled(cluster: Cluster) -> None:
    gate = Gate()
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "gate", timeout=0.3)
    await cluster.add(gate.driver)
    run = await cluster.ended((await cluster.post("thing", "one", "p")).run_id)
    assert run.status == "TimedOut"
    assert gate.stopped == [run.run_id]


async def test_sync_code_sees_its_cancel(cluster: Cluster) -> None:
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait(payload: str, event: str, run_id: str, logger: DriverLogger, context: RunContext) -> DriverResult:
        loop.call_soon_threadsafe(started.set)
        assert context.cancelled.wait(10)
        raise RuntimeError("stopped")

    await cluster.define("thing")
    await cluster.add(Driver("a", ("thing",), wait))
    run_id = (await cluster.post("thing", "one")).run_id
    await started.wait()
    await cluster.intake.cancel(run_id, who="test", why="enough")
    assert (await cluster.ended(run_id)).status == "Cancelled"


async def test_sync_code_that_ignores_its_timeout_costs_its_process_not_the_run(cluster: Cluster) -> None:
    async def never_mind() -> None:
        await manager_task

    stop = False

    def ignore(payload: str, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
        while not stop:
            time.sleep(0.01)
        return DriverResult(success=True)

    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a", timeout=0.2)
    manager = await cluster.add(Driver("a", ("thing",), ignore), kill_grace=0.1)
    manager_task = cluster.managers[-1][1]
    run = await cluster.ended((await cluster.post("thing", "one", "p")).run_id)
    assert run.status == "TimedOut"
    await never_mind()
    assert manager.stuck
    stop = True


async def test_a_worker_that_loses_its_lease_stops_and_another_takes_over(cluster: Cluster) -> None:
    gate = Gate()
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "gate")
    first = await cluster.add(gate.driver)
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await gate.started.get()
    first._lease._confirmed = float("-inf")
    first._jobs.look()
    assert await gate.started.get() == (run_id, "create", 1)
    gate.open.set()
    run = await cluster.ended(run_id)
    assert run.status == "Succeeded"
    assert gate.stopped == [run_id]


async def test_a_drained_worker_hands_its_work_over(cluster: Cluster) -> None:
    gate = Gate()
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "gate")
    first = await cluster.add(gate.driver, drain_grace=0.1)
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await gate.started.get()
    await cluster.stop(first)
    await cluster.add(gate.driver)
    assert await gate.started.get() == (run_id, "create", 1)
    gate.open.set()
    run = await cluster.ended(run_id)
    assert run.status == "Succeeded"
    assert run.steps[0].attempt == 1


async def test_one_driver_name_serves_one_set_of_types(cluster: Cluster) -> None:
    await cluster.add(recorder("a", [], "thing"))
    with pytest.raises(ConfigError, match="give this one another name"):
        await cluster.add(recorder("a", [], "other"))
    cluster.managers.pop()


async def test_messages_nobody_can_read_are_kept_aside_and_stop_nothing(cluster: Cluster) -> None:
    calls: list[tuple[str, str]] = []
    await cluster.define("thing")
    await cluster.add(recorder("a", calls))
    for garbage in (b"{", b"[]", b'{"payload":"{"}', b'{"payload":"{}"}', b"\xff\xfe"):
        await cluster.bus.publish("drivers.a.resources.thing", garbage)
        await cluster.bus.publish("pipelines.driver.result", garbage)
    run = await cluster.ended((await cluster.post("thing", "one")).run_id)
    assert run.status == "Succeeded"

    async def letters() -> int:
        from conveyor_runtime.bus.streams import stream_info

        info = await stream_info(cluster.bus, "cv-dlq")
        assert info is not None
        return int(info["state"]["messages"])

    async with asyncio.timeout(5):
        while await letters() < 10:
            await asyncio.sleep(0.05)


async def test_results_nobody_can_read_hold_up_no_others_while_they_cannot_be_kept(cluster: Cluster) -> None:
    await cluster.define("thing")
    await cluster.add(recorder("a", []))
    await cluster.bus.api("STREAM.DELETE.cv-dlq")
    for _ in range(4):
        await cluster.bus.publish("pipelines.driver.result", b"{")
    run_id = (await cluster.post("thing", "one")).run_id
    assert (await cluster.ended(run_id, seconds=5)).status == "Succeeded"


async def lose_the_dispatch(cluster: Cluster, driver: str) -> None:
    """Take it away, once it is there."""
    subject = f"drivers.{driver}.>"
    async with asyncio.timeout(5):
        while await next_by_subject(cluster.bus, MESSAGES, subject, 1) is None:
            await asyncio.sleep(0.02)
    await cluster.bus.api(f"STREAM.PURGE.{MESSAGES}", {"filter": subject})


async def test_a_lost_dispatch_is_issued_again_by_the_sweep(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conveyor_runtime.engine.sweep._SETTLING", timedelta(0))
    calls: list[tuple[str, str]] = []
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a")
    manager = await cluster.add(recorder("a", calls))
    await cluster.stop(manager)
    run_id = (await cluster.post("thing", "one", "p")).run_id

    await lose_the_dispatch(cluster, "a")
    await cluster.add(recorder("a", calls))
    await cluster.sweep.sweep()
    assert (await cluster.ended(run_id)).status == "Succeeded"
    assert len(calls) == 1


async def test_a_cancel_whose_hint_is_lost_is_seen_at_the_next_renewal(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 13: a hint is not stored, and may be lost."""
    monkeypatch.setattr("conveyor_runtime.reconcile.lease.RENEW_EVERY", 0.5)
    gate = Gate()
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "gate")
    await cluster.add(gate.driver)
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await gate.started.get()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.bus, "publish_core", lambda subject, data: None)
        await cluster.intake.cancel(run_id, who="a test", why="enough")
    assert (await cluster.ended(run_id)).status == "Cancelled" and gate.stopped == [run_id]


@pytest.mark.parametrize("hours", [-48, 48])
async def test_a_clock_that_jumps_ends_nothing(cluster: Cluster, hours: int) -> None:
    """What lives, is old or is silent is told by clocks that only go forward; times of day are for people."""
    gate = Gate()
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "gate", timeout="1h")
    await cluster.add(gate.driver, concurrency=1)
    first = (await cluster.post("thing", "one", "p")).run_id
    await gate.started.get()
    cluster.engine.transitions.now = lambda: utc_now() + timedelta(hours=hours)
    second = (await cluster.post("thing", "two", "p")).run_id  # waits for the slot
    for run_id in (first, second):
        cluster.engine.look(run_id)
    await cluster.sweep.sweep()
    await asyncio.sleep(0.5)
    cluster.engine.transitions.now = utc_now
    await cluster.sweep.sweep()
    gate.open.set()
    for run_id in (first, second):
        run = await cluster.ended(run_id)
        assert (run.status, run.steps[0].attempt) == ("Succeeded", 1)
    assert gate.started.qsize() == 1 and gate.stopped == []


async def test_a_lost_dispatch_of_a_finally_step_is_issued_again_in_a_cancelled_run_too(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules 13 and 16: a cancel never speaks of `finally` steps."""
    monkeypatch.setattr("conveyor_runtime.engine.sweep._SETTLING", timedelta(0))
    gate, calls = Gate(), list[tuple[str, str]]()
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "gate", finally_=("clean",))
    await cluster.stop(await cluster.add(recorder("clean", calls)))
    await cluster.add(gate.driver)
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await gate.started.get()
    await cluster.intake.cancel(run_id, who="a test", why="it must end")
    await lose_the_dispatch(cluster, "clean")
    await cluster.add(recorder("clean", calls))
    await cluster.sweep.sweep()
    run = await cluster.ended(run_id)
    assert (run.status, run.steps[-1].status, len(calls)) == ("Cancelled", "Succeeded", 1)


async def test_a_run_no_resource_names_is_removed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conveyor_runtime.engine.sweep.ORPHAN_AGE", timedelta(0))
    await cluster.define("thing")
    record = (await cluster.post("thing", "one")).record
    orphan = await cluster.intake._acceptance.new_run(record, "update", None)
    assert orphan is not None
    await cluster.state.commit(*runs.puts(orphan))
    await cluster.sweep.sweep()
    assert await cluster.state.run(orphan.run_id) is None


async def test_a_backlog_costs_a_sweep_no_read_of_the_store(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a driver is Accepted for long, and there may be very many of it."""
    monkeypatch.setattr("conveyor_runtime.engine.sweep.ORPHAN_AGE", timedelta(0))
    gate = Gate()
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "gate")
    await cluster.add(gate.driver, concurrency=1)
    await cluster.post("thing", "one", "p")
    await gate.started.get()
    run_id = (await cluster.post("thing", "two", "p")).run_id
    read, asked = cluster.state.resource, list[str]()

    async def counted(type_: str, name: str) -> object:
        asked.append(name)
        return await read(type_, name)

    monkeypatch.setattr(cluster.state, "resource", counted)
    await cluster.sweep.sweep()
    found = cluster.state.view.run(run_id)
    assert asked == [] and found is not None and found.record.status == "Accepted"


async def test_a_run_that_waits_its_turn_is_none_however_old_it_is(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I1: what a resource names was accepted."""
    monkeypatch.setattr("conveyor_runtime.engine.sweep.ORPHAN_AGE", timedelta(0))
    gate = Gate()
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "gate")
    await cluster.add(gate.driver)
    await cluster.post("thing", "one", "p")
    await gate.started.get()
    second = (await cluster.put("thing", "one", "p", x=1)).run_id
    await cluster.until(lambda: second in cluster.state.view.live_runs)
    await cluster.sweep.sweep()
    assert await cluster.state.run(second) is not None
    gate.open.set()
    assert (await cluster.ended(second)).status == "Succeeded"


async def test_leases_of_processes_long_dead_are_forgotten_once_no_run_needs_them(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = utc_now()
    gate = Gate()
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "gate")
    await cluster.add(gate.driver)
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await gate.started.get()
    long_ago = now - timedelta(hours=2)
    for id_, renewed_at in (("old", long_ago), ("claims", long_ago), ("young", now), ("lives", long_ago)):
        lease = Instance(id=id_, driver="d", started_at=long_ago, renewed_at=renewed_at, ended=id_ != "lives")
        await cluster.state.commit(Put(keys.instance(id_), lease))
    await cluster.state.commit(Put(keys.claim(run_id, "gate", 1, 7), Claim(instance="claims", at=now)))
    await cluster.until(lambda: cluster.state.view.claim(run_id, "gate", 1, 7))
    await cluster.sweep.sweep()
    left = {stored.key for stored in await cluster.state.store.list("instance.")}
    assert "instance.old" not in left
    assert {"instance.claims", "instance.young", "instance.lives"} <= left
    gate.open.set()
    await cluster.ended(run_id)


async def test_the_sweep_looks_again_after_a_reconnect(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 16: what happened meanwhile was not told to anybody here."""
    sweeps = asyncio.Queue[None]()

    async def sweep() -> None:
        sweeps.put_nowait(None)

    monkeypatch.setattr(cluster.sweep, "sweep", sweep)
    sweeping = asyncio.create_task(cluster.sweep.run())
    await sweeps.get()
    assert cluster.bus._nc._transport is not None
    cluster.bus._nc._transport._io_writer.close()  # type: ignore[attr-defined]
    async with asyncio.timeout(10):
        await sweeps.get()
    sweeping.cancel()
    await asyncio.wait({sweeping})


async def test_keys_nobody_can_read_stop_neither_the_sweep_nor_results(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conveyor_runtime.bus import subjects

    monkeypatch.setattr("conveyor_runtime.engine.engine._NEWER_ENGINE_TRIES", 2)
    calls: list[tuple[str, str]] = []
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a")
    run_id = (await cluster.post("thing", "one", "p")).run_id
    newer = b'{"run_id":"0192-newer","type":"thing","name":"two","event":"create","generation":1,"status":"%s"}'
    unreadable = {"run.0192-newer": newer % b"Paused", "run.0193-broken": newer % b"Running", "claim.a.b.c.d": b"{}"}
    unreadable |= {"claim.r.s.1.0": b"?", "instance.x": b"{}", "resource.thing.two": b"{}", "driver.x": b"{}"}
    for key, value in unreadable.items():
        await cluster.bus.publish(subjects.kv(key), value)
    await cluster.bus.publish("pipelines.driver.result", b'{"event":"driver.result","run_id":"0192-newer"}')
    await cluster.until(lambda: {"0192-newer", "0193-broken"} <= cluster.state.view.live_runs)
    await cluster.sweep.sweep()
    await cluster.add(recorder("a", calls))
    assert (await cluster.ended(run_id)).status == "Succeeded"

    async with asyncio.timeout(10):
        while await cluster.results_waiting():
            await asyncio.sleep(0.05)


async def test_the_same_result_twice_counts_once(cluster: Cluster) -> None:
    gate = Gate()
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "gate", "next")
    manager = await cluster.add(gate.driver)
    calls: list[tuple[str, str]] = []
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await gate.started.get()
    gate.open.set()
    await cluster.until(lambda: cluster.run(run_id).steps[0].status == "Succeeded")
    failed = {"run_id": run_id, "step": "gate", "attempt": 1, "takeover": 0, "status": "Failed"}
    body = orjson.dumps({"event": "driver.result", "run_id": run_id, "cv": failed})
    committer = manager._deps.results
    await committer.commit([Message("pipelines.driver.result", body, headers={"Cv-Result": "1", "Cv-Run": run_id})])
    await cluster.add(recorder("next", calls))
    run = await cluster.ended(run_id)
    assert run.status == "Succeeded"
    assert len(calls) == 1
