"""What waits for a consumer that is deleted is handed to the one made in its place, or issued anew."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from conveyor_runtime.bus.streams import MESSAGES
from conveyor_runtime.engine import outtray
from conveyor_runtime.models import DriverResult
from conveyor_runtime.reconcile import Driver, DriverLogger
from tests.support.cluster import Cluster


async def waiting(cluster: Cluster) -> int:
    return int((await cluster.bus.api(f"STREAM.INFO.{MESSAGES}"))["state"]["messages"])


@pytest.mark.parametrize("thrown_away", [False, True])
async def test_what_waited_is_handed_out_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, thrown_away: bool
) -> None:
    monkeypatch.setattr("conveyor_runtime.engine.sweep._SETTLING", timedelta(0))
    hold, started, seen = asyncio.Event(), asyncio.Event(), list[str]()

    async def reconcile(payload: str, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
        seen.append(run_id)
        started.set()
        await hold.wait()
        return DriverResult(success=True)

    await cluster.define("thing")
    await cluster.add(Driver("a", ("thing",), reconcile), concurrency=1)
    runs = [(await cluster.post("thing", f"n{number}")).run_id for number in range(4)]
    await asyncio.wait_for(started.wait(), 5)
    async with asyncio.timeout(5):
        while await waiting(cluster) != 4:
            await asyncio.sleep(0.01)
    await cluster.bus.api(f"CONSUMER.DELETE.{MESSAGES}.cvpy-a")
    if thrown_away:  # by a sweep that comes before the consumer is back
        await outtray.throw_away(cluster.bus, cluster.state)
    assert await waiting(cluster) == (0 if thrown_away else 4), "or this proves nothing"
    hold.set()  # with its slot free it asks for more, and learns of it
    for run_id in runs:
        assert (await cluster.ended(run_id)).status == "Succeeded"
    assert sorted(seen) == sorted(runs), "each once"
