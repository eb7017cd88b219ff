"""What a driver's limits promise over all its processes."""

from __future__ import annotations

import asyncio
import time
from typing import cast

import pytest

from conveyor_runtime.bus.rated import RatedSlots
from conveyor_runtime.bus.streams import MESSAGES, list_consumers
from conveyor_runtime.models import Resource, Use
from conveyor_runtime.orchestra import Limits
from conveyor_runtime.reconcile import Driver, DriverLogger, RateLimit
from tests.support.cluster import Cluster


async def test_runs_begin_no_faster_than_the_rate_limit_over_three_processes(cluster: Cluster) -> None:
    starts: list[float] = []

    async def reconcile(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> None:
        starts.append(time.time())

    await cluster.define("thing")
    for _ in range(3):
        await cluster.add(Driver("d", ("thing",), reconcile, rate_limit=RateLimit(5, burst=3)), concurrency=4)
    began = time.time()
    posts = await asyncio.gather(*(cluster.post("thing", f"t{number}") for number in range(15)))
    for accepted in posts:
        assert (await cluster.ended(accepted.run_id, 30)).status == "Succeeded"
    early = [number for number, at in enumerate(sorted(starts)) if at < began + (number - 2) / 5]
    assert len(starts) == 15 and not early
    assert max(starts) - began < 12, "tokens are not wasted"


async def test_what_waits_for_a_token_holds_no_slot(cluster: Cluster) -> None:
    seen: list[str] = []

    async def reconcile(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> None:
        seen.append(payload.name)

    await cluster.define("thing")
    manager = await cluster.add(Driver("d", ("thing",), reconcile, rate_limit="6/m"), concurrency=1)
    first = (await cluster.post("thing", "one")).run_id
    await cluster.ended(first)
    second = (await cluster.post("thing", "two")).run_id
    async with asyncio.timeout(10):
        # Its slot is free again only once the message has gone back to the server, a moment after the pause began.
        slots = cast(RatedSlots, manager._deliveries._slots)
        while slots._pause is None or slots._rest != 1:
            await asyncio.sleep(0.02)
    assert not manager._jobs
    assert cluster.run(second).status == "Pending"
    assert seen == ["one"]


async def test_a_node_holds_no_more_than_it_has_over_two_processes(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = Use(cpu_milli=2000, memory_bytes=2**30)
    monkeypatch.setattr("conveyor_runtime.reconcile.manager.capacity", lambda orchestra: has)
    monkeypatch.setattr("conveyor_runtime.reconcile.admission.FULL_RETRY", 0.1)
    at_work, most = 0, 0

    async def reconcile(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.1)
        at_work -= 1

    def uses(payload: Resource) -> Limits:
        return Limits(cpu_milli=payload.spec["cpu"])

    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "d")
    for _ in range(2):
        driver = Driver("d", ("thing",), reconcile, sandbox=True, direct=False, uses=uses)
        await cluster.add(driver, node="n1", concurrency=4)
    [at_once] = {info["config"]["max_ack_pending"] for info in await list_consumers(cluster.bus, MESSAGES)}
    assert at_once >= 50_000, "those that wait for room keep none of the others from being handed out"
    posts = [await cluster.post("thing", f"t{number}", "p", cpu=1000) for number in range(8)]
    too_large = await cluster.post("thing", "large", "p", cpu=3000)
    for accepted in posts:
        assert (await cluster.ended(accepted.run_id, 30)).status == "Succeeded"
    assert most == 2
    run = await cluster.ended(too_large.run_id)
    assert (run.status, run.steps[0].message[:17]) == ("Error", "it asks for 3 CPU")
