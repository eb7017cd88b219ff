"""What a driver's process does beside its deliveries: it cleans up after others, and its end is in order."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from conveyor_runtime.bus import Committer
from conveyor_runtime.models import Resource
from conveyor_runtime.reconcile import Driver, DriverLogger
from tests.integration.engine.test_runs import recorder
from tests.support.cluster import Cluster
from tests.unit.reconcile.test_janitor import HERE, Place


async def test_claims_are_given_up_before_the_lease_ends(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sees the lease end must find in the claim that no result will come: PROTOCOL 7."""
    publishing = asyncio.Event()
    commit = Committer.commit

    async def never_a_result(committer: Committer, unit, **options):
        if any(message.subject.startswith("pipelines.") for message in unit):
            publishing.set()
            await asyncio.Event().wait()
        return await commit(committer, unit, **options)

    monkeypatch.setattr(Committer, "commit", never_a_result)
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a")
    manager = await cluster.add(recorder("a", []), kill_grace=0.0)
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await asyncio.wait_for(publishing.wait(), 10)
    manager.drain()
    await cluster.stop(manager)
    claim = await cluster.state.claim(run_id, "a", 1, 0)
    assert claim is not None
    lease = await cluster.state.instance(claim.record.instance)
    assert lease is not None
    assert claim.record.given_up
    assert lease.record.ended
    assert claim.revision < lease.revision, "written in this order"


async def test_a_driver_with_sandboxes_removes_what_others_left(cluster: Cluster) -> None:
    """Rule 20: from its start, and beside its deliveries."""
    place = Place(age=9999)

    async def reconcile(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> None:
        pass

    orchestra = SimpleNamespace(backends=[place], default=place, nodes=[HERE])
    await cluster.add(Driver("a", ("thing",), reconcile, sandbox=True), orchestra=orchestra)
    async with asyncio.timeout(5):
        while not place.closed:
            await asyncio.sleep(0.01)
    assert place.closed == ["cv-i-x"]
