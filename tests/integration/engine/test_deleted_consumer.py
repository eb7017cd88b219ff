"""A consumer that is deleted takes what waited on an interest stream with it: nothing of that is lost."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from conveyor_runtime.bus.streams import MESSAGES
from conveyor_runtime.models import DriverResult
from conveyor_runtime.reconcile import Driver, DriverLogger
from tests.support.cluster import Cluster


async def waiting(cluster: Cluster) -> int:
    return int((await cluster.bus.api(f"STREAM.INFO.{MESSAGES}"))["state"]["messages"])


async def test_what_waited_is_handed_out_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert await waiting(cluster) == 0, "or this proves nothing"
    hold.set()  # with its slot free it asks for more, and learns of it
    for run_id in runs:
        assert (await cluster.ended(run_id)).status == "Succeeded"
    assert sorted(seen) == sorted(runs), "each once"
