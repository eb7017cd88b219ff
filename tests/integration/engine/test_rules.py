"""What the protocol promises, rule by rule, where no other test shows it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from conveyor_runtime.bus import EmbeddedServer, Message, Receipt, StoredMsg, Tail
from conveyor_runtime.bus.streams import stream_info
from conveyor_runtime.engine import intray, planner
from conveyor_runtime.engine.purge import Purge
from conveyor_runtime.errors import BusUnavailable, RevisionConflict
from conveyor_runtime.models import Claim, DriverResult, Resource, Status, utc_now
from conveyor_runtime.models.message import H_REASON
from conveyor_runtime.reconcile import Driver, DriverLogger
from conveyor_runtime.reconcile.lease import SELF_FENCE, Lease, LeaseLostError
from conveyor_runtime.store import LogStore, MemoryStore, Put, State, keys
from tests.integration.engine.test_queue import Gate
from tests.integration.engine.test_runs import recorder
from tests.support.cluster import Cluster, cluster_on


async def messages(cluster: Cluster, stream: str) -> int:
    info = await stream_info(cluster.bus, stream)
    assert info is not None
    return int(info["state"]["messages"])


async def only_letter(cluster: Cluster) -> StoredMsg:
    """The dead letter there is, once it is kept."""
    async with asyncio.timeout(10):
        tail = Tail(cluster.bus, "cv-dlq", ">")
        letter = await anext(tail)
        await tail.aclose()
    assert await messages(cluster, "cv-dlq") == 1
    return letter


async def test_a_run_still_waiting_its_turn_ends_unrun_when_cancelled(cluster: Cluster) -> None:
    """Rules 1 and 2: not even its `finally` steps are dispatched."""
    gate = Gate()
    calls: list[tuple[str, str]] = []
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "gate", finally_=("last",))
    await cluster.add(gate.driver)
    await cluster.add(recorder("last", calls))
    first = (await cluster.post("thing", "one", "p")).run_id
    await gate.started.get()
    second = (await cluster.put("thing", "one", "p", x=1)).run_id
    await cluster.intake.cancel(second, who="test", why="enough")
    run = await cluster.ended(second)
    assert (run.status, run.reason) == ("Cancelled", "cancelled by test: enough")
    assert [step.status for step in run.steps] == ["Skipped", "Skipped"] and calls == []
    gate.open.set()
    assert (await cluster.ended(first)).status == "Succeeded"
    assert calls == [("last", "create")]


async def test_steps_of_a_run_meet_on_the_node_of_the_first(cluster: Cluster) -> None:
    """Rule 5."""
    where: list[tuple[str, str]] = []

    def sandbox(name: str, node: str) -> Driver:
        async def reconcile(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> None:
            where.append((payload.name, node))

        return Driver(name, ("thing",), reconcile, sandbox=True, direct=False)

    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "start", "build", finally_=("stop",))
    for node in ("n1", "n2"):
        for name in ("start", "build", "stop"):
            await cluster.add(sandbox(name, node), node=node, concurrency=1)
    runs = [(await cluster.post("thing", f"r{number}", "p")).run_id for number in range(10)]
    assert {(await cluster.ended(run)).status for run in runs} == {"Succeeded"}
    nodes = {name: {node for it, node in where if it == name} for name, _ in where}
    assert all(len(found) == 1 for found in nodes.values()) and len(where) == 30


async def test_a_handler_that_failed_between_claim_and_result_gives_up_when_it_is_asked_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 7."""
    monkeypatch.setattr("conveyor_runtime.reconcile.claims.BUSY_RETRY", 0.05)
    from conveyor_runtime.reconcile import dispatch
    from conveyor_runtime.reconcile.publish import publish_result

    publish, tries = publish_result, Counter[str]()

    async def once(*arguments: Any) -> None:
        tries["publish"] += 1
        if tries["publish"] == 1:
            raise BusUnavailable("lost half-way")
        await publish(*arguments)

    monkeypatch.setattr(dispatch, "publish_result", once)
    calls: list[tuple[str, str]] = []
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a")
    await cluster.add(recorder("a", calls))
    run = await cluster.ended((await cluster.post("thing", "one", "p")).run_id)
    record = cluster.state.view.run(run.run_id)
    assert record is not None and record.record.steps["a"].takeover == 1 and record.record.steps["a"].deaths == 0
    claim = await cluster.state.claim(run.run_id, "a", 1, 0)
    assert claim is not None and claim.record.given_up and len(calls) == 2


async def test_a_dispatch_somebody_else_has_is_left_alone_and_one_that_is_over_dropped(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 7."""
    monkeypatch.setattr("conveyor_runtime.reconcile.claims.BUSY_RETRY", 0.05)
    calls: list[tuple[str, str]] = []
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a")
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await cluster.state.commit(Put(keys.claim(run_id, "a", 1, 0), Claim(instance="other", at=utc_now()), 0))
    cluster.engine.liveness.is_dead = lambda instance_id: False  # type: ignore[method-assign]
    await cluster.add(recorder("a", calls))
    await cluster.until(lambda: cluster.run(run_id).steps[0].status == "Running")

    async with asyncio.timeout(10):
        while not await cluster.dispatches_waiting():
            await asyncio.sleep(0.01)
    assert calls == []
    await cluster.engine.transitions.change(
        run_id, lambda run: planner.end_step(run, "a", Status.FAILED, "over", utc_now())
    )
    async with asyncio.timeout(10):
        while await cluster.dispatches_waiting():
            await asyncio.sleep(0.05)
    assert calls == []


async def test_every_line_is_stored_before_the_result_and_the_result_before_the_ack(cluster: Cluster) -> None:
    """Rule 9."""
    order: list[str] = []
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a")
    manager = await cluster.add(recorder("a", []))
    deps = manager._dispatch.deps

    def slowly(name: str, commit: Any, seconds: float) -> Any:
        async def slow(unit: Sequence[Message], *, timeout: float = 10.0) -> list[Receipt]:
            await asyncio.sleep(seconds)
            receipts: list[Receipt] = await commit(unit, timeout=timeout)
            order.append(name)
            return receipts

        return slow

    deps.logs.commit = slowly("line", deps.logs.commit, 0.2)  # type: ignore[method-assign]
    deps.results.commit = slowly("result", deps.results.commit, 0.1)  # type: ignore[method-assign]
    handle = manager._dispatch.handle

    async def watched(delivery: Any) -> None:
        ack = delivery.ack

        async def noted() -> None:
            order.append("ack")
            await ack()

        delivery.ack = noted
        await handle(delivery)

    manager._dispatch.handle = watched  # type: ignore[method-assign]
    await cluster.ended((await cluster.post("thing", "one", "p")).run_id)
    async with asyncio.timeout(5):
        while len(order) < 3:
            await asyncio.sleep(0.01)
    assert order == ["line", "result", "ack"]


async def test_a_result_stays_on_the_bus_until_it_is_committed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 10."""
    refused = asyncio.Event()
    commit = cluster.state.commit

    async def refuse_once(*puts: Put, timeout: float = 10.0) -> list[int]:
        record = puts[0].record
        if not refused.is_set() and getattr(record, "steps", None) and record.steps["a"].status == "Succeeded":  # type: ignore[union-attr]
            assert await cluster.results_waiting() == 1
            refused.set()
            raise BusUnavailable("not now")
        return await commit(*puts, timeout=timeout)

    monkeypatch.setattr(cluster.state, "commit", refuse_once)
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a")
    await cluster.add(recorder("a", []))
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await refused.wait()
    assert (await cluster.ended(run_id)).status == "Succeeded"
    async with asyncio.timeout(5):
        while await cluster.results_waiting():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("run_id", [b"a.b", b"*", b"a b", b"", b"x" * 200])
async def test_a_result_of_no_possible_run_is_set_aside_and_holds_nothing_up(cluster: Cluster, run_id: bytes) -> None:
    """Rule 10, and the bound on poison: takeovers wait for results, so none may stay for ever."""
    sent = b'{"event":"driver.result","run_id":"%s"}' % run_id
    await cluster.bus.publish("pipelines.driver.result", sent)
    letter = await only_letter(cluster)
    assert (letter.data, letter.headers["Cv-Subject"]) == (sent, "pipelines.driver.result")
    assert letter.headers[H_REASON]
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a")
    await cluster.add(recorder("a", []))
    assert (await cluster.ended((await cluster.post("thing", "one", "p")).run_id)).status == "Succeeded"
    async with asyncio.timeout(5):
        while await cluster.results_waiting():
            await asyncio.sleep(0.01)


async def test_a_result_as_large_as_the_bus_takes_is_set_aside_cut(cluster: Cluster) -> None:
    size = cluster.bus.max_payload - 200
    await cluster.bus.publish("pipelines.driver.result", b"x" * size)
    letter = await only_letter(cluster)
    assert set(letter.data) == {ord("x")} and size - 10_000 < len(letter.data) < size
    assert letter.headers["Cv-Cut"] == f"{size} bytes, the first {len(letter.data)} are kept"


async def test_a_lease_holds_25_seconds_from_the_sending_of_its_last_confirmed_renewal() -> None:
    """Rule 12."""
    now = 100.0
    lease = Lease(State(MemoryStore()), "d", (), 1, lambda: now)
    assert not lease.held()
    await lease.renew()
    now += SELF_FENCE
    assert lease.held()
    now += 0.1
    assert not lease.held()
    commit = lease._state.commit

    async def slow(*puts: Put, timeout: float = 10.0) -> list[int]:
        nonlocal now
        now += 3
        return await commit(*puts, timeout=timeout)

    lease._state.commit = slow  # type: ignore[method-assign]
    await lease.renew()
    now += SELF_FENCE - 3
    assert lease.held()
    now += 0.1
    assert not lease.held(), "it counts from the sending, not from the answer"
    lease._state.commit = commit  # type: ignore[method-assign]
    await lease.renew()
    await lease.end()
    assert not lease.held()
    found = await lease._state.instance(lease.id)
    assert found is not None and found.record.ended


@pytest.mark.parametrize("how", ["gone", "removed"])
async def test_a_lease_others_took_away_is_lost_for_good(how: str) -> None:
    """Rules 11 and 12."""
    lease = Lease(State(MemoryStore()), "d", (), 1)
    await lease.renew()
    found = await lease._state.instance(lease.id)
    assert found is not None
    gone = found.record.model_copy(update={"gone": "said so"}) if how == "gone" else None
    await lease._state.commit(Put(keys.instance(lease.id), gone))
    with pytest.raises(LeaseLostError):
        await lease.renew()
    assert not lease.held()


async def test_a_dispatch_that_still_waits_is_not_issued_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 16."""
    monkeypatch.setattr("conveyor_runtime.engine.sweep._SETTLING", timedelta(0))
    gate = Gate()
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "gate")
    await cluster.add(gate.driver, concurrency=1)
    runs = [(await cluster.post("thing", f"r{number}", "p")).run_id for number in range(3)]
    await gate.started.get()
    # The server's clock is ahead of the one that noted the issue, as far as you like.
    for run_id in runs:
        found = await cluster.state.run(run_id)
        assert found is not None
        state = found.record.steps["gate"]
        earlier = state.model_copy(update={"issued_at": utc_now() - timedelta(hours=1)})
        record = found.record.model_copy(update={"steps": {"gate": earlier}})
        await cluster.state.commit(Put(keys.run(run_id), record, found.revision))
    await cluster.sweep.sweep()
    issues = [cluster.state.view.run(run).record.steps["gate"].issue for run in runs]  # type: ignore[union-attr]
    assert issues == [1, 1, 1]
    gate.open.set()
    for run in runs:
        await cluster.ended(run)


async def test_a_follower_sees_each_line_once_and_ends_with_the_run(cluster: Cluster) -> None:
    """Rule 19."""
    line = b'{"runid":"r","driver":"d","step":"s","attempt":1,"seq":%d,"message":"%d"}'
    other = line.replace(b'"driver":"d"', b'"driver":"e"')
    for data in (line % (1, 1), line % (2, 2), line % (1, 1), line % (2, 2), other % (1, 10), b"no json"):
        await cluster.bus.publish("logs.r", data)
    ended, seen = asyncio.Event(), []

    async def follow() -> None:
        async for entry in LogStore(cluster.bus).follow("r", ended.wait()):  # type: ignore[arg-type]
            seen.append(entry.line.message)  # noqa: PERF401 - seen while it goes on

    following = asyncio.create_task(follow())
    await cluster.bus.publish("logs.r", line % (3, 3))
    ended.set()
    async with asyncio.timeout(5):
        await following
    assert seen == ["1", "2", "10", "no json", "3"]


async def test_old_runs_are_purged_whole_and_named_or_young_ones_kept(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 21."""

    async def reconcile(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
        logger.info("a line")
        return DriverResult(success=True, data="x" * 10_000)

    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a")
    await cluster.add(Driver("a", ("thing",), reconcile))
    first = (await cluster.post("thing", "one", "p", x="y" * 5000)).run_id
    await cluster.ended(first)
    second = (await cluster.put("thing", "one", "p", x=2)).run_id
    await cluster.ended(second)
    await cluster.until(lambda: cluster.state.view.resource("thing", "one").record.last_run == second)  # type: ignore[union-attr]
    purge = Purge(cluster.engine.transitions, cluster.bus)

    async def left(run_id: str) -> list[str]:
        found = [it.key.split(".")[0] for kind in ("run", "claim", "data", "input") for it in await cluster.state.store.list(f"{kind}.") if run_id in it.key]  # noqa: E501  # fmt: skip
        return [*found, *["log" for _ in await cluster.logs(run_id)]]

    assert await left(first) == ["run", "claim", "data", "input", "log"]
    assert await purge.round() == 0
    for wait, many, gone in [
        (timedelta(days=29), 100, 0),
        (timedelta(minutes=59), 1, 0),
        (timedelta(minutes=61), 1, 1),
    ]:
        later = wait
        cluster.engine.transitions.now = lambda: utc_now() + later  # noqa: B023 - used up in this turn
        monkeypatch.setattr("conveyor_runtime.engine.purge.KEEP_MOST", many)
        assert await purge.round() == gone
    assert await left(first) == [] and await left(second) == ["run", "claim", "data", "log"]
    cluster.engine.transitions.now = lambda: utc_now() + timedelta(days=31)
    assert await purge.round() == 0, "a resource names its last run"
    await cluster.intake.delete("thing", "one")
    await cluster.gone("thing", "one")
    assert await purge.round() >= 1 and await left(second) == []


async def test_the_purge_goes_on_while_something_is_due(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 21: a minute is for when nothing is."""
    monkeypatch.setattr("conveyor_runtime.engine.purge._ROUND", 2)
    monkeypatch.setattr("conveyor_runtime.engine.purge._MOST_TOGETHER", 1)
    calls: list[tuple[str, str]] = []
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a")
    await cluster.add(recorder("a", calls))
    await cluster.ended((await cluster.post("thing", "one", "p")).run_id)
    for number in range(5):
        await cluster.ended((await cluster.put("thing", "one", "p", x=number)).run_id)
    now = utc_now() + timedelta(days=31)
    cluster.engine.transitions.now = lambda: now
    task = asyncio.create_task(Purge(cluster.engine.transitions, cluster.bus).run())
    await cluster.until(lambda: len(cluster.state.view.run_ids()) == 1)  # what the resource names last
    assert len(await cluster.state.store.list("claim.")) == 1, "that of the run which is named"
    task.cancel()


async def test_a_run_nobody_can_read_ends_no_purge(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 21: the control plane lives on, and looks again."""
    monkeypatch.setattr("conveyor_runtime.engine.purge._PERIOD", 0.05)
    purge, rounds = Purge(cluster.engine.transitions, cluster.bus), asyncio.Queue[None]()

    async def failing() -> int:
        rounds.put_nowait(None)
        raise ValueError("no record")

    monkeypatch.setattr(purge, "round", failing)
    task = asyncio.create_task(purge.run())
    async with asyncio.timeout(5):
        for _ in range(3):
            await rounds.get()
    assert not task.done()
    task.cancel()


async def test_two_engines_share_a_hundred_runs_and_nothing_runs_twice(
    cluster: Cluster, nats_server: EmbeddedServer
) -> None:
    """Rules 4, 7 and 10: any engine may do any engine rule."""
    calls: Counter[tuple[str, str]] = Counter()

    def counting(name: str) -> Driver:
        async def reconcile(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> None:
            calls[run_id, name] += 1

        return Driver(name, ("thing",), reconcile, direct=False)

    async with cluster_on(nats_server.url) as other:
        await cluster.define("thing")
        await cluster.pipeline("p", "thing", "a", "b", finally_=("z",))
        for name in "abz":
            await cluster.add(counting(name), concurrency=20)
        await other.until(lambda: other.state.view.resource("pipeline", "p") and len(other.state.view.drivers()) == 3)
        posted = await asyncio.gather(
            *((cluster, other)[number % 2].post("thing", f"r{number}", "p") for number in range(100))
        )
        for accepted in posted:
            assert (await cluster.ended(accepted.run_id, 30)).status == "Succeeded"
        assert len(calls) == 300 and set(calls.values()) == {1}
        for engine in (cluster, other):
            await engine.sweep.sweep()
        await other.until(lambda: not other.state.view.live_runs)
        await other.until(lambda: all(it.record.active is None for it in other.state.view.resources("thing")))


async def test_a_run_is_stored_before_the_resource_that_names_it(cluster: Cluster) -> None:
    """Rule 1: a crash may leave a run that nobody names, never a name without a run. Told by their sequences in the
    stream, for writes that come alone and for those that share batches; what lies in `input` is written only once."""
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "nobody")
    names = ["alone", *(f"r{number}" for number in range(30))]

    async def stored(key: str) -> int:
        found = await cluster.state.store.get(key)
        assert found is not None, key
        return found.revision

    created = [await cluster.post("thing", "alone", "p")]
    created += await asyncio.gather(*(cluster.post("thing", name, "p") for name in names[1:]))
    for accepted in created:
        assert await stored(keys.run(accepted.run_id)) < accepted.revision
    changed = [await cluster.put("thing", "alone", "p", x="y" * 5000)]
    changed += await asyncio.gather(*(cluster.put("thing", name, "p", x="y" * 5000) for name in names[1:]))
    deleted = await asyncio.gather(*(cluster.intake.delete("thing", name) for name in names))
    assert all([await stored(keys.run_input(it.run_id)) < it.revision for it in changed])
    assert all([await stored(keys.run_input(it.run_id)) < it.revision for it in deleted])


async def test_a_run_whose_resource_could_not_be_written_is_never_worked_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 1: it was not accepted; the client was told so, and the sweep removes it a minute later."""
    commit = cluster.state.commit

    async def torn(*puts: Put, timeout: float = 10.0) -> list[int]:
        if puts[0].key.startswith("resource.thing"):
            raise BusUnavailable("cut off")
        return await commit(*puts, timeout=timeout)

    seen: list[str] = []

    async def reconcile(payload: str, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
        seen.append(run_id)
        return DriverResult(success=True)

    await cluster.define("thing")
    await cluster.add(Driver("one", ("thing",), reconcile))
    await cluster.pipeline("p", "thing", "one")
    monkeypatch.setattr(cluster.state, "commit", torn)
    with pytest.raises(BusUnavailable):
        await cluster.post("thing", "it", "p")
    monkeypatch.undo()
    (run_id,) = cluster.state.view.run_ids()
    cluster.engine.look(run_id)
    await cluster.sweep.sweep()
    accepted = await cluster.post("thing", "it", "p")
    assert (await cluster.ended(accepted.run_id)).status == "Succeeded"
    assert seen == [accepted.run_id]
    monkeypatch.setattr("conveyor_runtime.engine.sweep.ORPHAN_AGE", timedelta(0))
    await cluster.sweep.sweep()
    assert await cluster.state.run(run_id) is None


async def test_a_write_somebody_else_was_faster_than_leaves_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 1: it is made anew on what the other wrote, with one run."""
    await cluster.define("thing")
    await cluster.post("thing", "one")
    commit, raced = cluster.state.commit, False

    async def race(*puts: Put, timeout: float = 10.0) -> list[int]:
        nonlocal raced
        if not raced and puts[-1].key == keys.resource("thing", "one"):
            raced = True
            found = await cluster.state.resource("thing", "one")
            assert found is not None
            await commit(Put(keys.resource("thing", "one"), found.record, found.revision))
        return await commit(*puts, timeout=timeout)

    before = set(cluster.state.view.run_ids())
    monkeypatch.setattr(cluster.state, "commit", race)
    accepted = await cluster.put("thing", "one", x=1)
    assert raced and set(cluster.state.view.run_ids()) - before == {accepted.run_id}


async def test_a_write_whose_answer_was_lost_is_known_by_its_run(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 1: even once somebody has gone on from it."""
    await cluster.define("thing")
    commit, lost = cluster.state.commit, False

    async def lose(*puts: Put, timeout: float = 10.0) -> list[int]:
        nonlocal lost
        revisions = await commit(*puts, timeout=timeout)
        if not lost and puts[-1].key == keys.resource("thing", "one"):
            lost = True
            await commit(Put(puts[-1].key, puts[-1].record, revisions[-1]))
            raise RevisionConflict(puts[-1].key)
        return revisions

    monkeypatch.setattr(cluster.state, "commit", lose)
    accepted = await cluster.post("thing", "one")
    found = await cluster.state.resource("thing", "one")
    assert lost and found is not None and found.revision == accepted.revision
    assert [entry.run_id for entry in found.record.entries] == [accepted.run_id]


async def test_results_that_were_taken_in_are_thrown_away_and_no_others(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 8: a takeover waits for what is stored, so what is out with an engine must stay."""
    refused = asyncio.Event()
    commit = cluster.state.commit

    async def refuse(*puts: Put, timeout: float = 10.0) -> list[int]:
        record = puts[0].record
        if getattr(record, "steps", None) and record.steps["a"].status == "Succeeded":  # type: ignore[union-attr]
            refused.set()
            raise BusUnavailable("not now")
        return await commit(*puts, timeout=timeout)

    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a")
    await cluster.add(recorder("a", []))
    for name in ("one", "two", "three"):
        assert (await cluster.ended((await cluster.post("thing", name, "p")).run_id)).status == "Succeeded"
    async with asyncio.timeout(5):
        while await cluster.results_waiting():
            await asyncio.sleep(0.01)
    monkeypatch.setattr(cluster.state, "commit", refuse)
    run_id = (await cluster.post("thing", "four", "p")).run_id
    await refused.wait()
    last = await intray.last_stored(cluster.bus)
    assert await intray.taken_in(cluster.bus) == last - 1
    await intray.throw_away(cluster.bus)
    assert await messages(cluster, "cv-results") == 1
    monkeypatch.undo()
    assert (await cluster.ended(run_id)).status == "Succeeded"
    async with asyncio.timeout(5):
        while await intray.taken_in(cluster.bus) < last:
            await asyncio.sleep(0.01)
    await cluster.sweep.sweep()
    assert await messages(cluster, "cv-results") == 0
