"""Runs of a higher priority are begun before others that wait for the same driver."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import cast

import pytest

from conveyor_runtime.bus import Puller, Slots
from conveyor_runtime.bus.consumers import ensure_consumer
from conveyor_runtime.bus.rated import RatedSlots
from conveyor_runtime.bus.streams import MESSAGES
from conveyor_runtime.engine import Draft, overtaking
from conveyor_runtime.engine.overtaking import Ahead
from conveyor_runtime.models import Overtaker, Overtakers, Resource
from conveyor_runtime.reconcile import Driver, DriverLogger
from conveyor_runtime.reconcile.overtaking import Overtaking
from conveyor_runtime.store import Put, keys
from tests.support.cluster import Cluster


class Turnstile:
    """A driver whose runs go through one at a time, each when `let` says so; `begun` are their names in order."""

    def __init__(self, **fields: object) -> None:
        self.begun: list[str] = []
        self.at_work = self.most = 0
        self.entered = asyncio.Semaphore(0)
        self.let = asyncio.Semaphore(0)
        self.driver = Driver("d", ("thing",), self.reconcile, **fields)  # type: ignore[arg-type]

    async def reconcile(self, payload: Resource, event: str, run_id: str, logger: DriverLogger) -> None:
        self.begun.append(payload.name)
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        self.entered.release()
        await self.let.acquire()
        self.at_work -= 1


async def post(cluster: Cluster, name: str, priority: int = 0) -> str:
    return (await cluster.intake.create(Draft("thing", name, {}, priority=priority))).run_id


async def named(cluster: Cluster, count: int) -> None:
    """Until so many dispatches are known to come before others."""
    async with asyncio.timeout(5):
        while (found := await cluster.state.overtakers("d")) is None or len(found.record.waiting) != count:
            await asyncio.sleep(0.02)


async def all_end(cluster: Cluster, gate: Turnstile, runs: list[str]) -> None:
    for _ in runs:
        gate.let.release()
    for run_id in runs:
        assert (await cluster.ended(run_id, 30)).status == "Succeeded"
    assert max(Counter(gate.begun).values()) == 1, "nothing is begun twice"


async def test_a_high_priority_starts_next_behind_a_backlog_of_a_hundred(cluster: Cluster) -> None:
    gate = Turnstile()
    await cluster.define("thing")
    await cluster.add(gate.driver, concurrency=1)
    runs = await asyncio.gather(*(post(cluster, f"low-{number}") for number in range(100)))
    await gate.entered.acquire()
    high = await post(cluster, "high", 1)
    await named(cluster, 1)
    gate.let.release()
    await gate.entered.acquire()
    assert gate.begun[1] == "high" and cluster.run(high).priority == 1
    await all_end(cluster, gate, [*runs, high])


async def test_they_come_by_priority_then_by_age_and_the_others_keep_their_order(cluster: Cluster) -> None:
    gate = Turnstile()
    await cluster.define("thing")
    await cluster.add(gate.driver, concurrency=1)
    runs = [await post(cluster, name) for name in ("now", "low-1", "low-2")]
    await gate.entered.acquire()
    runs += [await post(cluster, f"{kind}-{n}", p) for n, (kind, p) in enumerate((("mid", 3), ("top", 9), ("mid", 3)))]
    await named(cluster, 3)
    await all_end(cluster, gate, runs)
    assert gate.begun == ["now", "top-1", "mid-0", "mid-2", "low-1", "low-2"]


async def test_processes_that_come_later_begin_with_it_too(cluster: Cluster) -> None:
    gate = Turnstile()
    await cluster.define("thing")
    await cluster.stop(await cluster.add(gate.driver))
    runs = [await post(cluster, name, priority) for name, priority in (("low-1", 0), ("low-2", 0), ("high", 5))]
    await named(cluster, 1)
    await cluster.add(gate.driver, concurrency=1)
    await all_end(cluster, gate, runs)
    assert gate.begun == ["high", "low-1", "low-2"]


async def test_it_takes_the_place_of_another_so_no_more_work_at_once_than_may(cluster: Cluster) -> None:
    gates = [Turnstile(max_concurrent=2)] * 3
    await cluster.define("thing")
    for gate in gates:
        await cluster.add(gate.driver, concurrency=2)
    runs = list(await asyncio.gather(*(post(cluster, f"low-{number}") for number in range(10))))
    for _ in range(2):
        await gates[0].entered.acquire()
    runs += [await post(cluster, f"high-{number}", 4) for number in range(4)]
    await named(cluster, 4)
    await all_end(cluster, gates[0], runs)
    assert gates[0].most == 2
    # Beside the last of them, which is being taken, the other may begin already.
    assert {f"high-{number}" for number in range(4)} <= set(gates[0].begun[2:7])


async def test_what_has_been_begun_makes_room_for_others(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overtaking, "MOST", 2)
    gate = Turnstile()
    await cluster.define("thing")
    await cluster.add(gate.driver, concurrency=2)
    runs = [await post(cluster, f"high-{number}", 5) for number in range(2)]
    for _ in runs:
        await gate.entered.acquire()
    runs += [await post(cluster, "low", 0), await post(cluster, "mid", 1)]
    await named(cluster, 1)
    await all_end(cluster, gate, runs)
    assert gate.begun[2:] == ["mid", "low"]


async def test_a_worker_takes_only_what_its_nodes_can_do_and_what_is_what_it_was(cluster: Cluster) -> None:
    bus, state = cluster.bus, cluster.state
    await ensure_consumer(bus, MESSAGES, "cvpy-d-node-n1", filters=["drivers.d.node.n1.resources.thing"])

    async def make() -> object:
        return await ensure_consumer(bus, MESSAGES, "cvpy-d", filters=["drivers.d.resources.thing"])

    await make()
    headers = {"Cv-Run": "r", "Cv-Step": "s", "Cv-Attempt": "1", "Cv-Takeover": "0", "Cv-Priority": "3"}
    ours, low = [
        await bus.publish(f"drivers.d.{where}resources.thing", b"{}", headers=it)
        for where, it in (("node.n1.", headers), ("", {}))
    ]
    first = Overtaker(priority=3, seq=ours.seq, run_id="r", step="s", attempt=1, takeover=0, node="n1")
    elsewhere = first.model_copy(update={"node": "n2"})
    another = first.model_copy(update={"run_id": "q"})
    gone = first.model_copy(update={"seq": low.seq + 7})
    await state.commit(Put(keys.overtakers("d"), Overtakers(waiting=(elsewhere, another, gone, first))))
    puller = Puller(bus, MESSAGES, "cvpy-d", Slots(1), on_missing=make)
    place = await puller.next()
    found = await Overtaking("d", ("n1",), bus, state).before(place)
    assert found is not None and (found.stream_seq, found.data) == (ours.seq, b"{}")
    assert (found.num_delivered, 0 <= found.age < 30) == (1, True)
    await found.nak()
    left = await state.overtakers("d")
    assert left is not None and left.record.waiting == (elsewhere,)
    assert await Overtaking("d", ("n1",), bus, state).before(place) is None
    assert await Overtaking("d", (), bus, state).before(found) is None, "it comes before nothing of its own priority"
    await puller.stop()


async def test_a_process_that_drains_gives_back_what_was_overtaken(cluster: Cluster) -> None:
    gate, later = Turnstile(), Turnstile()
    await cluster.define("thing")
    manager = await cluster.add(gate.driver, concurrency=1)
    runs = [await post(cluster, name) for name in ("now", "low")]
    await gate.entered.acquire()
    runs.append(await post(cluster, "high", 5))
    await named(cluster, 1)
    gate.let.release()
    await gate.entered.acquire()
    manager.drain()
    gate.let.release()
    await cluster.stop(manager)
    assert gate.begun == ["now", "high"]
    later.let.release()
    await cluster.add(later.driver)
    for run_id in runs:
        assert (await cluster.ended(run_id)).status == "Succeeded"
    assert later.begun == ["low"]


async def test_what_overtakes_takes_its_token_like_the_others(cluster: Cluster) -> None:
    starts: list[tuple[str, float]] = []

    async def reconcile(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> None:
        starts.append((payload.name, time.time()))

    await cluster.define("thing")
    manager = await cluster.add(Driver("d", ("thing",), reconcile, rate_limit="10/s"), concurrency=4)
    runs = list(await asyncio.gather(*(post(cluster, f"low-{number}") for number in range(12))))
    runs += await asyncio.gather(*(post(cluster, f"high-{number}", 5) for number in range(3)))
    for run_id in runs:
        assert (await cluster.ended(run_id, 30)).status == "Succeeded"
    times = [at for _, at in starts]
    assert len(starts) == 15
    assert not [n for n, at in enumerate(times) if at < times[0] + n / 10 - 0.05], times
    assert sum(name.startswith("high") for name, _ in starts[-6:]) == 0, starts
    slots = cast(RatedSlots, manager._deliveries._slots)
    async with asyncio.timeout(5):  # a run ends before the worker has heard that its result is stored
        while slots.free + slots._rest != 4:
            await asyncio.sleep(0.01)


async def test_many_dispatches_at_once_are_named_in_a_few_writes(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They all write one key: each by itself would be refused for all the others."""
    ahead, commit, commits = Ahead(cluster.state, cluster.bus), cluster.state.commit, list[Put]()

    async def counted(*puts: Put, timeout: float = 10.0) -> list[int]:
        commits.extend(puts)
        return await commit(*puts, timeout=timeout)

    monkeypatch.setattr(cluster.state, "commit", counted)
    many = [
        Overtaker(run_id=f"r{n}", step="s", attempt=1, takeover=0, priority=n % 3 + 1, seq=n + 1, node=None)
        for n in range(64)
    ]
    await asyncio.gather(*(ahead.put("d", it) for it in many))
    found = await cluster.state.overtakers("d")
    assert found is not None and found.record.waiting == overtaking.in_order(many)
    assert len(commits) <= 2
