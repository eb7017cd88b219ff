"""In containers: how a build ends, and that nothing of it is left, whatever was killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from conveyor_runtime.client import Client
from tests.acceptance.test_kills import define
from tests.support.processes import Process, Runtime, make_repository, runtime

pytestmark = pytest.mark.docker


class Builds:
    """A runtime on the docker backend, and what is left of its runs in the engine."""

    def __init__(self, running: Runtime, client: Client, builder: Process, engine: Any, spec: dict[str, Any]) -> None:
        self.running = running
        self.client = client
        self.builder = builder
        self._engine = engine
        self._spec = spec

    async def start(self, name: str, *commands: str, **spec: Any) -> str:
        """Post a build; its run id."""
        document = {"name": name, "resource": "ci-build", "spec": {**self._spec, "commands": list(commands), **spec}}
        return (await self.client.apply(document)).run_id

    async def until_line(self, run_id: str, message: str) -> None:
        async with asyncio.timeout(60):
            async for line in self.client.follow_logs(run_id):
                if line.message == message:
                    return

    def left(self, run_id: str) -> list[str]:
        """Containers and volumes that carry the run's label."""
        wanted = {"label": [f"conveyor.run={run_id}"]}
        containers = self._engine.containers(all=True, filters=wanted)
        volumes = self._engine.volumes(filters=wanted)["Volumes"] or []
        return [it["Id"] for it in containers] + [it["Name"] for it in volumes]

    async def nothing_left(self, run_id: str, seconds: float = 5.0) -> None:
        async with asyncio.timeout(seconds):
            while self.left(run_id):
                await asyncio.sleep(0.1)


@pytest.fixture
async def builds(tmp_path: Path, docker_engine: Any, busybox: str) -> AsyncIterator[Builds]:
    repository = make_repository(tmp_path / "repository")
    async with runtime(tmp_path, backend="docker") as running, Client(running.api_url) as client:
        [builder] = running.four_drivers()
        await define(client)
        yield Builds(running, client, builder, docker_engine, {"repository": repository, "image": busybox})


async def test_how_builds_end(builds: Builds) -> None:
    good = await builds.start("good", "cat README", "echo to stderr >&2")
    failing = await builds.start("failing", "exit 7")
    slow = await builds.start("slow", "sleep 60", timeout="2s")
    stopped = await builds.start("stopped", "echo begun; sleep 60")
    await builds.until_line(stopped, "begun")
    await builds.client.cancel_run(stopped, "enough")
    runs = {run_id: await builds.client.wait_run(run_id) for run_id in (good, failing, slow, stopped)}
    assert [run.status for run in runs.values()] == ["Succeeded", "Failed", "TimedOut", "Cancelled"], (
        builds.running.logs()
    )
    assert "exit code 7: exit 7" in runs[failing].reason
    assert next(step for step in runs[failing].steps if step.driver == "builder").exit_code == 7
    lines = [(line.stream, line.message) for line in await builds.client.logs(good) if line.stream]
    assert lines == [("stdout", "hello"), ("stderr", "to stderr")]
    for run_id in runs:
        await builds.nothing_left(run_id)


async def test_kill_of_the_builder_in_a_container(builds: Builds) -> None:
    run_id = await builds.start("one", "for i in 1 2 3 4 5 6; do echo tick $i; sleep 0.7; done")
    await builds.until_line(run_id, "tick 2")
    builds.builder.kill()
    builds.builder.start()
    assert (await builds.client.wait_run(run_id)).status == "Succeeded", builds.running.logs()
    lines = [line for line in await builds.client.logs(run_id) if line.stream == "stdout" and line.takeover == 1]
    assert [line.message for line in lines] == [f"tick {i}" for i in range(1, 7)]
    await builds.nothing_left(run_id)
