"""What a driver's own limits promise over all its processes, told by a journal they all write."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conveyor_runtime.client import Client
from tests.support.processes import Process, Runtime, runtime

DRIVER = """
import asyncio, os, time
from conveyor_runtime import Driver

def note(what, run_id):
    with open({journal!r}, "a") as journal:
        journal.write(f"{{what}} {{os.getpid()}} {{run_id}} {{time.time()}}\\n")

async def reconcile(payload: str, event, run_id, logger):
    note("start", run_id)
    await asyncio.sleep({seconds})
    note("end", run_id)

driver = Driver("limited", ("thing",), reconcile, {options})
"""


class Fleet:
    """Three processes of one driver, and what they wrote down."""

    def __init__(self, running: Runtime, client: Client) -> None:
        self.running, self.client = running, client
        self.journal = running.folder / "journal"
        self.journal.touch()
        self.processes: list[Process] = []

    async def start(self, options: str, seconds: float, concurrency: int) -> None:
        file = self.running.folder / "limited.py"
        file.write_text(DRIVER.format(journal=str(self.journal), seconds=seconds, options=options))
        await self.client.apply_definition({"name": "thing"})
        command = ("driver", "run", f"{file}:driver", "--concurrency", str(concurrency))
        self.processes = [self.running.driver(*command, name=f"limited-{number}") for number in range(3)]
        async with asyncio.timeout(60):
            while sum(len(it.instances) for it in await self.client.drivers()) < len(self.processes):
                await asyncio.sleep(0.1)

    async def post(self, count: int) -> list[str]:
        """So many runs."""
        documents = [{"name": f"t{number}", "resource": "thing", "spec": {}} for number in range(count)]
        return [(await self.client.create(document)).run_id for document in documents]

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.journal.read_text().splitlines()]

    async def written(self, count: int) -> None:
        """Until so many lines are written."""
        async with asyncio.timeout(60):
            while len(self.lines()) < count:
                await asyncio.sleep(0.02)

    def kill(self, process: Process) -> None:
        process.kill()
        with self.journal.open("a") as journal:
            journal.write(f"killed {process.pid} - 0\n")

    def most_at_once(self) -> int:
        """How many reconciles ran at the same time, at most."""
        at_work: set[tuple[str, str]] = set()
        most = 0
        for what, pid, run_id, _ in self.lines():
            if what == "start":
                at_work.add((pid, run_id))
            elif what == "end":
                at_work.discard((pid, run_id))
            else:
                at_work = {it for it in at_work if it[0] != pid}
            most = max(most, len(at_work))
        return most

    async def ended(self, run_ids: list[str]) -> None:
        runs = [await self.client.wait_run(run_id, 120) for run_id in run_ids]
        assert {run.status for run in runs} == {"Succeeded"}, self.running.logs()


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with runtime(tmp_path) as running, Client(running.api_url) as client:
        yield Fleet(running, client)


async def test_no_more_than_max_concurrent_run_at_once_though_one_is_killed(fleet: Fleet) -> None:
    await fleet.start("max_concurrent=2", seconds=0.3, concurrency=1)
    runs = await fleet.post(12)
    await fleet.written(7)
    async with asyncio.timeout(10):
        while not (working := [process for process in fleet.processes if _is_at_work(fleet, process)]):
            await asyncio.sleep(0.01)
    fleet.kill(random.choice(working))
    await fleet.ended(runs)
    assert fleet.most_at_once() == 2
    assert len({run_id for what, _, run_id, _ in fleet.lines() if what == "end"}) == 12


def _is_at_work(fleet: Fleet, process: Process) -> bool:
    last = [what for what, pid, _, _ in fleet.lines() if pid == str(process.pid)][-1:]
    return last == ["start"]
