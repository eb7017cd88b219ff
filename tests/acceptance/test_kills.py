"""`kill -9` of every part in the middle of a build: the run ends by itself, its log is whole, nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from conveyor_runtime.client import Client
from conveyor_runtime.models import LogLine
from tests.support.processes import Process, Runtime, make_repository, runtime

TICKS = 6
BUILD = f"i=0; while [ $i -lt {TICKS} ]; do i=$((i+1)); echo tick $i; sleep 0.7; done"


@pytest.fixture
async def build(tmp_path: Path) -> AsyncIterator[tuple[Runtime, Client, Process, str]]:
    """A run in the middle of its build: the runtime, a client, the builder's process, the run's id."""
    repository = make_repository(tmp_path / "repository")
    async with runtime(tmp_path) as running, Client(running.api_url) as client:
        [builder] = running.four_drivers()
        await define(client)
        spec = {"repository": repository, "commands": [BUILD]}
        accepted = await client.apply({"name": "one", "resource": "ci-build", "pipeline": "ci-build", "spec": spec})
        async with asyncio.timeout(30):
            async for line in client.follow_logs(accepted.run_id):
                if line.message == "tick 2":
                    break
        yield running, client, builder, accepted.run_id


async def define(client: Client) -> None:
    """`serve` has no definitions of its own; `up` registers the shipped ones."""
    import pipelines

    await client.apply_definition(pipelines.definition("ci-build"))
    await client.apply_pipeline(pipelines.pipeline("ci-build"))


async def ended(client: Client, run_id: str, seconds: float = 60.0) -> str:
    async with asyncio.timeout(seconds):
        run = await client.wait_run(run_id)
    return run.status


def check_log(lines: Sequence[LogLine], attempts: int) -> None:
    """Each attempt's lines are numbered without gap or repeat, and the last one is complete."""
    numbered = [(line.step, line.attempt, line.takeover, line.seq) for line in lines]
    assert len(numbered) == len(set(numbered)), "a line is stored twice"
    seqs: dict[tuple[str, int, int], list[int]] = {}
    for step, attempt, takeover, seq in numbered:
        assert seq is not None
        seqs.setdefault((step, attempt, takeover), []).append(seq)
    for who, found in seqs.items():
        assert found == list(range(1, len(found) + 1)), f"{who} has a gap: {found}"
    ticks = [(line.takeover, line.message) for line in lines if line.message.startswith("tick")]
    last = max(takeover for takeover, _ in ticks)
    assert [message for takeover, message in ticks if takeover == last] == [f"tick {i + 1}" for i in range(TICKS)]
    assert last == attempts - 1


async def check_nothing_left(running: Runtime) -> None:
    async with asyncio.timeout(10):
        while running.left():
            await asyncio.sleep(0.1)


async def test_kill_of_the_builder(build: tuple[Runtime, Client, Process, str]) -> None:
    running, client, builder, run_id = build
    builder.kill()
    builder.start()
    assert await ended(client, run_id) == "Succeeded", running.logs()
    check_log(await client.logs(run_id), attempts=2)
    await check_nothing_left(running)


async def test_kill_of_api_and_engine(build: tuple[Runtime, Client, Process, str]) -> None:
    running, client, _, run_id = build
    running.serve.kill()
    await running.start()
    assert await ended(client, run_id) == "Succeeded", running.logs()
    check_log(await client.logs(run_id), attempts=1)
    await check_nothing_left(running)


async def test_kill_of_nats_server(build: tuple[Runtime, Client, Process, str]) -> None:
    running, client, _, run_id = build
    os.kill(running.nats_pid(), signal.SIGKILL)
    assert await ended(client, run_id) == "Succeeded", running.logs()
    check_log(await client.logs(run_id), attempts=1)
    await check_nothing_left(running)


async def test_a_follower_misses_nothing_while_the_api_is_away(build: tuple[Runtime, Client, Process, str]) -> None:
    running, client, _, run_id = build

    followed: list[LogLine] = []
    connected = asyncio.Event()

    async def follow() -> None:
        async for line in client.follow_logs(run_id):
            followed.append(line)
            connected.set()

    following = asyncio.create_task(follow())
    async with asyncio.timeout(10):
        await connected.wait()
    running.serve.kill()
    before = len(followed)
    await running.start()
    async with asyncio.timeout(60):
        await following
    assert 0 < before < len(followed)
    assert [line.message for line in followed] == [line.message for line in await client.logs(run_id)]


async def test_three_builders_share_sixty_runs(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    async with runtime(tmp_path) as running, Client(running.api_url) as client:
        running.four_drivers(builders=3)
        await define(client)
        spec = {"repository": repository, "commands": ["echo built >> built; wc -l < built; sleep 0.3"]}
        names = [f"app-{number}" for number in range(60)]
        accepted = await asyncio.gather(
            *(client.apply({"name": name, "resource": "ci-build", "spec": spec}) for name in names)
        )
        runs = [await client.wait_run(it.run_id) for it in accepted]
        assert {run.status for run in runs} == {"Succeeded"}, running.logs()
        for it in accepted:
            lines = await client.logs(it.run_id)
            assert [line.message for line in lines if line.stream == "stdout"] == ["1"], "a build ran twice"
            again = [line.message for line in lines if (line.attempt, line.takeover) != (1, 0)]
            errors = [line.message for line in lines if line.level == "error"]
            assert not again, (again, errors)
        workers = Counter(await builders_of(client, [it.run_id for it in accepted]))
        assert len(workers) == 3, workers
        await check_nothing_left(running)


async def builders_of(client: Client, run_ids: list[str]) -> list[str]:
    """The process that built each run."""
    found = []
    for run_id in run_ids:
        run = await client.get_run(run_id)
        [build] = [step for step in run.steps if step.driver == "builder"]
        assert build.instance, "a finished step says which process worked on it"
        found.append(build.instance)
    return found
