"""User code that kills its process, among the work of others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from conveyor_runtime.engine import planner, steps
from conveyor_runtime.store.letters import Letters
from tests.support.cluster import Cluster
from tests.support.processes import Process

DRIVER = """
import asyncio, os, signal
from conveyor_runtime import Driver, Resource

async def reconcile(payload: Resource, event, run_id, logger):
    await asyncio.sleep(0.1)
    if payload.name == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(0.1)

driver = Driver("d", ("thing",), reconcile)
"""


async def keep_up(process: Process) -> None:
    """Start it again whenever it ends, as a supervisor does."""
    while True:
        process.start()
        while process.exited is None:
            await asyncio.sleep(0.05)


async def test_the_innocent_survive_the_one_that_kills_their_process(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 8: they die beside it twice, and then come back at another time than it does."""
    monkeypatch.setattr(planner, "DEATH_WAIT", 3.0)
    (tmp_path / "d.py").write_text(DRIVER)
    await cluster.define("thing")
    names = ["poison", *(f"innocent-{number}" for number in range(6))]
    runs = {name: (await cluster.post("thing", name)).run_id for name in names}
    argv = ("driver", "run", f"{tmp_path / 'd.py'}:driver", "--concurrency", "8")
    process = Process(*argv, env={"CONVEYOR_NATS_URL": cluster.url}, log=tmp_path / "d.log")
    supervising = asyncio.create_task(keep_up(process))
    try:
        ended = {name: await cluster.ended(run_id, 120) for name, run_id in runs.items()}
    finally:
        supervising.cancel()
        process.stop()
    found = {name: cluster.state.view.run(run_id) for name, run_id in runs.items()}
    deaths = {name: it.record.steps["d"].deaths for name, it in found.items() if it is not None}
    assert [ended[name].status for name in names[1:]] == ["Succeeded"] * 6, deaths
    assert (ended["poison"].status, deaths["poison"]) == ("Error", steps.MAX_DEATHS), deaths
    assert sum(died >= planner.DEATHS_TO_WAIT for died in deaths.values()) > 1, f"nobody died beside it: {deaths}"
    [letter] = await Letters(cluster.bus).list(limit=10)
    assert (letter.about.run_id, letter.about.reason) == (runs["poison"], "5 workers died while they worked on it")
