"""The mock's sandboxes: execs scripted by step, real files, and time that passes as the test says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from conveyor_runtime.errors import BackendUnavailable
from conveyor_runtime.orchestra import ExecTag, Owner, Sandbox, Task, sandboxes_of
from conveyor_runtime.orchestra.mock import MockBackend, Process, World, says
from conveyor_runtime.testing import Said

OWNER = Owner("inst", "run", "start", 1, 0)


async def opened(world: World) -> Sandbox:
    return await sandboxes_of(MockBackend(world)).start_sandbox("cv-inst-run", Task("box", env={"A": "1"}), OWNER)


def tag(step: str, attempt: int = 1) -> ExecTag:
    return ExecTag("run", step, attempt, 0)


@pytest.mark.looptime
async def test_execs_are_scripted_by_step_and_time_is_the_loops() -> None:
    sandbox = await opened(World({"build": says(b"built", code=2, seconds=3600), "test": says(seconds=86400)}))
    said = Said()
    status = await sandbox.exec(["make"], on_output=said, tag=tag("build"))
    assert (status.status, status.exit_code, said.stdout) == ("error", 2, b"built")
    assert status.seconds == pytest.approx(3600)
    status = await sandbox.exec(["make", "test"], timeout=60, on_output=said, tag=tag("test"))
    assert status.status == "timeout"
    assert status.seconds == pytest.approx(60)
    assert (await sandbox.exec(["any"], on_output=said, tag=tag("other"))).status == "success"


async def test_a_program_sees_what_was_asked_and_the_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("copied")

    async def program(process: Process) -> int:
        assert process.workspace is not None
        asked = process.task
        assert (asked.command, dict(asked.env)) == (("cat", "file"), {"A": "1", "B": "2"})
        await process.write((Path(asked.workdir) / "file").read_bytes() + await process.read())
        return 0

    sandbox = await opened(World({"show": program}))
    await sandbox.copy_in(tmp_path, "sub")
    said = Said()
    words = ["cat", "file"]
    await sandbox.exec(words, env={"B": "2"}, workdir="sub", stdin=b" in", on_output=said, tag=tag("show"))
    assert said.stdout == b"copied in"
    await sandbox.cleanup()
    assert not Path(sandbox.workspace).exists()


@pytest.mark.looptime
async def test_what_is_left_behind_is_ended_with_its_step() -> None:
    ended = asyncio.Event()

    async def daemon() -> None:
        try:
            await asyncio.sleep(86400)
        finally:
            ended.set()

    async def program(process: Process) -> int:
        process.left.append(asyncio.create_task(daemon()))
        return 0

    sandbox = await opened(World({"serve": program}))
    await sandbox.exec(["serve"], on_output=Said(), tag=tag("serve"))
    assert await sandbox.end_execs("serve", (1, 0)) == 0
    assert not ended.is_set()
    assert await sandbox.end_execs("serve", (2, 0), grace=1) == 1
    assert ended.is_set()


async def test_faults_of_sandboxes_are_scripted() -> None:
    world = World()
    sandbox = await opened(world)
    world.fail("exec", BackendUnavailable("down"))
    with pytest.raises(BackendUnavailable):
        await sandbox.exec(["any"], on_output=Said(), tag=tag("build"))
    assert (await sandbox.exec(["any"], on_output=Said(), tag=tag("build"))).status == "success"
