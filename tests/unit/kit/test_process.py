"""Child processes: output passed on, groups ended, pipes never waited for in vain."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from conveyor_runtime.kit.process import Child, Exit, run
from conveyor_runtime.kit.shielded import finish, hold

ENV = {"PATH": os.defpath}


class Said:
    def __init__(self) -> None:
        self.data = {"stdout": b"", "stderr": b""}
        self.news = asyncio.Event()

    async def __call__(self, stream: str, data: bytes) -> None:
        self.data[stream] += data
        self.news.set()


async def gone(group: int) -> None:
    """Wait for the group to vanish: its last members may still be zombies of the machine's init."""
    async with asyncio.timeout(5):
        with pytest.raises(ProcessLookupError):
            while True:
                os.killpg(group, 0)
                await asyncio.sleep(0.02)


async def test_output_and_exit_code() -> None:
    said = Said()
    assert await run(["sh", "-c", "echo out; echo err >&2; exit 3"], env=ENV, on_chunk=said) == Exit(3)
    assert said.data == {"stdout": b"out\n", "stderr": b"err\n"}


async def test_environment_and_directory_are_as_given(tmp_path: Path) -> None:
    said = Said()
    await run(["/bin/sh", "-c", "pwd; env"], env={"A": "b"}, cwd=tmp_path, on_chunk=said)
    lines = said.data["stdout"].decode().splitlines()
    assert lines[0] == str(tmp_path)
    assert {line.split("=")[0] for line in lines[1:]} <= {"A", "PWD", "_", "OLDPWD", "SHLVL"}


async def test_signal_is_negative() -> None:
    assert (await run(["sh", "-c", "kill -9 $$"], env=ENV, on_chunk=Said())).code == -9


async def test_what_cannot_be_executed_is_an_error() -> None:
    with pytest.raises(OSError, match="no-such"):
        await run(["/no-such-program"], env=ENV, on_chunk=Said())


async def test_a_grandchild_with_the_pipes_does_not_hold_us() -> None:
    said = Said()
    async with asyncio.timeout(10):
        done = await run(["sh", "-c", "sleep 60 & echo $!; exit 0"], env=ENV, on_chunk=said)
    assert done == Exit(0)
    os.kill(int(said.data["stdout"]), 9)


async def test_a_grandchild_that_never_stops_writing_does_not_hold_us() -> None:
    taken = 0

    async def count(_: str, data: bytes) -> None:
        nonlocal taken
        taken += len(data)

    async with asyncio.timeout(10):
        await run(["sh", "-c", "yes & sleep 0.2; exit 0"], env=ENV, on_chunk=count)
    assert taken > 0


async def test_timeout_ends_the_group() -> None:
    said = Said()
    done = await run(
        ["sh", "-c", "trap '' TERM; echo $$; sleep 60; sleep 60"], env=ENV, on_chunk=said, timeout=0.3, grace=0.3
    )
    assert done == Exit(-9, timed_out=True)
    await gone(int(said.data["stdout"]))


async def test_cancel_ends_the_group() -> None:
    said = Said()
    task = asyncio.create_task(run(["sh", "-c", "echo $$; sleep 60"], env=ENV, on_chunk=said))
    await said.news.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(int(said.data["stdout"]))


async def test_a_child_whose_start_is_cancelled_is_not_lost() -> None:
    started: list[Child] = []

    async def start() -> None:
        child = await Child.start(["sleep", "60"], env=ENV, on_chunk=Said())
        started.append(child)
        await asyncio.sleep(0)

    task = asyncio.create_task(start())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await started[0].stop(1)
    await started[0].close()


async def test_finish_and_hold_do_not_give_up() -> None:
    done: list[str] = []

    async def work() -> str:
        await asyncio.sleep(0.05)
        done.append("work")
        return "result"

    for way in (finish, hold):
        got: list[str] = []

        async def caller(way: object = way, got: list[str] = got) -> None:
            got.append(await way(work()))  # type: ignore[operator]
            await asyncio.sleep(0)

        task = asyncio.create_task(caller())
        for _ in range(3):
            await asyncio.sleep(0.005)
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert got == ([] if way is finish else ["result"])
    assert done == ["work", "work"]


async def test_finish_raises_what_the_work_raised() -> None:
    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await finish(work())
    with pytest.raises(ValueError, match="no"):
        await hold(work())
