"""I2 and I4 at their sharpest: a worker that stands still past its lease, and goes on while another has its work."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import pipelines
from conveyor_runtime.bus import Bus
from conveyor_runtime.client import Client
from conveyor_runtime.models.message import H_TAKEOVER
from tests.support.processes import Runtime

#: Ends once the test has put a file there, so that it lasts as long as it is needed.
SCRIPT = "echo begun $$; while [ ! -e {flag} ]; do sleep 0.1; done; echo finished"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Runtime]:
    running = Runtime(tmp_path, command=(sys.executable, "-m", "tests.support.hasty"))
    try:
        await running.start()
        yield running
    finally:
        for process in running.drivers:
            if process.exited is None:
                os.kill(process.pid, signal.SIGCONT)
        running.stop()


async def test_who_stood_still_past_its_lease_leaves_its_work_to_the_other(running: Runtime, tmp_path: Path) -> None:
    """It comes back to a container that lives and that another follows: it neither answers for it nor ends it."""
    flag = tmp_path / "finish"
    answers: list[str] = []
    async with Client(running.api_url) as client:
        await client.apply_definition(pipelines.definition("task"))
        # With one slot it asks for nothing while it works, so no dispatch is handed to a process that stands still.
        first = running.driver("container-run", "--concurrency", "1", name="first")
        command = ["sh", "-c", SCRIPT.format(flag=flag)]
        run_id = (await client.apply({"name": "one", "resource": "task", "spec": {"command": command}})).run_id
        pid = await begun(client, run_id, takeover=0)
        os.kill(first.pid, signal.SIGSTOP)
        running.driver("container-run", name="second")
        bus = await Bus.connect(running.nats_url, name="test")
        await bus.subscribe_core("pipelines.driver.result", lambda msg: answers.append((msg.headers or {})[H_TAKEOVER]))
        assert await begun(client, run_id, takeover=1) == pid, running.logs()
        os.kill(first.pid, signal.SIGCONT)
        async with asyncio.timeout(20):
            while first.pid not in [it.pid for driver in await client.drivers() for it in driver.instances]:
                await asyncio.sleep(0.1)
        assert first.stop() == 0, running.logs()
        os.kill(pid, 0)
        assert answers == []
        flag.touch()
        run = await client.wait_run(run_id, timeout=20)
        assert (run.status, answers) == ("Succeeded", ["1"]), running.logs()
        last = [line.takeover for line in await client.logs(run_id) if line.message == "finished"]
        assert last == [1]
        await bus.close()
    async with asyncio.timeout(10):
        while running.left():
            await asyncio.sleep(0.1)


async def begun(client: Client, run_id: str, takeover: int) -> int:
    """The pid that the task has told to who follows it for this takeover."""
    async with asyncio.timeout(40):
        async for line in client.follow_logs(run_id):
            if line.takeover == takeover and line.message.startswith("begun "):
                return int(line.message.split()[1])
    raise AssertionError("the run has ended")
