"""The mock backend: scripted results and faults, and time that passes as the test says."""

from __future__ import annotations

import asyncio

import pytest

from conveyor_runtime.errors import BackendError, BackendUnavailable, TerminalError
from conveyor_runtime.orchestra import Limits, Mount, Owner, RestartPolicy, Stream, Task
from conveyor_runtime.orchestra.mock import Killed, MockBackend, Process, World, says

OWNER = Owner("inst", "run", "start", 1, 0)
NS = "cv-inst-run"


async def quiet(line: str) -> None:
    """Nobody reads the progress."""


def task(name: str, **options: object) -> Task:
    return Task(name, command=("any",), **options)  # type: ignore[arg-type]


async def said_by(container: object) -> list[tuple[Stream, bytes]]:
    said: list[tuple[Stream, bytes]] = []

    async def take(stream: Stream, data: bytes) -> None:
        said.append((stream, data))

    await container.logs(take)  # type: ignore[attr-defined]
    return said


async def test_results_are_scripted_by_task_id() -> None:
    backend = MockBackend(World({"build": says(b"out", b"err", code=2)}))
    container = await backend.run(NS, task("build"), OWNER)
    status = await container.wait()
    assert (status.status, status.exit_code) == ("error", 2)
    assert await said_by(container) == [("stdout", b"out"), ("stderr", b"err")]
    assert (await (await backend.run(NS, task("other"), OWNER)).wait()).status == "success"


@pytest.mark.looptime
async def test_time_is_the_loops() -> None:
    backend = MockBackend(World({"long": says(seconds=86400), "longer": says(seconds=2 * 86400)}))
    for name, timeout, seconds in (("long", None, 86400), ("longer", 3600.0, 3600)):
        status = await (await backend.run(NS, task(name, timeout=timeout), OWNER)).wait()
        assert status.status == ("timeout" if timeout else "success")
        assert status.finished_at is not None
        assert (status.finished_at - status.started_at).total_seconds() == pytest.approx(seconds)


@pytest.mark.looptime
async def test_a_program_sees_its_task_and_is_asked_to_end() -> None:
    async def program(process: Process) -> int:
        process.handles_term = True
        await process.write(await process.read() + process.task.env["A"].encode())
        process.volumes["data"]["seen"] = True
        await process.terminated.wait()
        await process.write(b" tidy")
        return 3

    backend = MockBackend(World({"x": program}))
    container = await backend.run(NS, task("x", stdin=b"in ", env={"A": "b"}, mounts=(Mount("data", "data"),)), OWNER)
    await asyncio.sleep(1)
    await container.stop(grace=5)
    status = await container.status()
    assert (status.status, status.exit_code) == ("cancelled", 3)
    assert b"".join(data for _, data in await said_by(container)) == b"in b tidy"


@pytest.mark.looptime
async def test_a_deaf_program_is_killed() -> None:
    async def program(process: Process) -> int:
        process.handles_term = True
        await asyncio.sleep(1000)
        return 0

    container = await MockBackend(World({"x": program})).run(NS, task("x"), OWNER)
    await asyncio.sleep(1)
    before = asyncio.get_running_loop().time()
    await container.stop(grace=7)
    assert asyncio.get_running_loop().time() - before == pytest.approx(7)
    assert (await container.status()).exit_code == 137


@pytest.mark.looptime
async def test_deaths_errors_and_restarts() -> None:
    async def oom(process: Process) -> int:
        raise Killed(9, oom=True)

    async def broken(process: Process) -> int:
        raise ValueError("a bug")

    backend = MockBackend(World({"oom": oom, "broken": broken, "again": says(code=1)}))
    status = await (await backend.run(NS, task("oom"), OWNER)).wait()
    assert (status.status, status.exit_code, status.reason) == ("killed", 137, "oom")
    container = await backend.run(NS, task("broken"), OWNER)
    assert (await container.wait()).exit_code == 1
    assert await said_by(container) == [("stderr", b"ValueError: a bug\n")]
    again = await backend.run(NS, task("again", restart=RestartPolicy("on-failure", 4)), OWNER)
    assert (await again.wait()).restarts == 4


async def test_faults_strike_as_often_as_they_are_told() -> None:
    world = World()
    backend = MockBackend(world)
    world.fail("prepare", BackendUnavailable("down"), times=2)
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="down"):
            await backend.prepare(task("x"), quiet)
    await backend.prepare(task("x"), quiet)
    world.fail("run", BackendError("every third"), times=2, every=3)
    failed = []
    for number in range(10):
        try:
            await backend.run(NS, task(f"t{number}"), OWNER)
        except BackendError:
            failed.append(number)
    assert failed == [2, 5]
    world.fail("wait", BackendError("nobody knows"))
    container = await backend.get(NS, "t0")
    with pytest.raises(BackendError, match="nobody knows"):
        await container.wait()
    assert (await container.wait()).status == "success"


async def test_what_it_cannot_keep_it_refuses() -> None:
    with pytest.raises(TerminalError, match="memory limit"):
        await MockBackend().run(NS, task("x", limits=Limits(memory_bytes=1)), OWNER)
