"""Three servers that keep three copies of everything: work goes on while the one that leads is killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from conveyor_runtime.bus.streams import MESSAGES, STATE, stream_info
from conveyor_runtime.models import DriverResult, Resource
from conveyor_runtime.reconcile import Driver, DriverLogger
from tests.support.cluster import cluster_on
from tests.support.servers import leader_of, three_servers

pytestmark = pytest.mark.timeout(180)


async def test_work_goes_on_while_leaders_are_killed(tmp_path: Path) -> None:
    """I1, I2, I5."""
    starts: Counter[str] = Counter()

    async def reconcile(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
        starts[run_id] += 1
        logger.info("works")
        await asyncio.sleep(0.2)
        return DriverResult(success=True)

    async with three_servers(tmp_path) as servers, cluster_on(servers.url, replicas=3) as cluster:
        info = await stream_info(cluster.bus, STATE)
        assert info is not None and info["config"]["num_replicas"] == 3
        await cluster.define("thing")
        await cluster.pipeline("p", "thing", "a")
        await cluster.add(Driver("a", ("thing",), reconcile), concurrency=4)
        for number, stream in enumerate((STATE, MESSAGES)):
            runs = [(await cluster.post("thing", f"t{number}-{n}", "p")).run_id for n in range(20)]
            leader = await leader_of(cluster.bus, stream)
            servers.kill(leader)
            assert await leader_of(cluster.bus, stream, but=leader) in servers.running
            for run_id in runs:
                assert (await cluster.ended(run_id, 90)).status == "Succeeded"
                assert [line.message for line in await cluster.logs(run_id)] == ["works"]
            servers.start(leader)
        # One that was being worked on when its worker could not renew its lease may have been taken over.
        assert len(starts) == 40 and sum(starts.values()) <= 44
