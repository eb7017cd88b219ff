"""A child is kept running, and does not outlive us."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from conveyor_runtime.kit import identity
from conveyor_runtime.kit.child import Child


def child_of(script: str) -> Child:
    return Child("child", [sys.executable, "-c", script], dict(os.environ))


async def until_line(path: Path, count: int) -> list[str]:
    async with asyncio.timeout(20):
        while len(lines := path.read_text().split() if path.exists() else []) < count:
            await asyncio.sleep(0.01)
    return lines


SLEEP = "import os,sys,time; open({!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(100)"


async def test_it_is_started_again_when_it_is_killed(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    child = child_of(SLEEP.format(str(noted)))
    running = asyncio.create_task(child.run())
    [first] = await until_line(noted, 1)
    os.kill(int(first), signal.SIGKILL)
    _, second = await until_line(noted, 2)
    assert first != second and child.pid == int(second)
    await child.stop(5)
    assert identity.start_time(int(second)) is None
    await asyncio.sleep(0.3)
    assert not running.done() and len(noted.read_text().split()) == 2, "what was stopped stays down"
    running.cancel()


async def test_one_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    child = child_of("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEP.format(str(noted)))
    running = asyncio.create_task(child.run())
    [pid] = await until_line(noted, 1)
    await child.stop(0.2)
    assert identity.start_time(int(pid)) is None
    running.cancel()


async def test_stopping_one_that_never_started_is_nothing() -> None:
    child = child_of("pass")
    child.terminate()
    await child.stop(1)
    assert child.pid is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel is asked on Linux only")
async def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    parent = (
        "import asyncio,os,sys\n"
        "from conveyor_runtime.kit.child import Child\n"
        f"asyncio.run(Child('c', [sys.executable, '-c', {SLEEP.format(str(noted))!r}], dict(os.environ)).run())"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", parent)
    [pid] = await until_line(noted, 1)
    process.kill()
    await process.wait()
    async with asyncio.timeout(5):
        while identity.start_time(int(pid)) is not None:
            await asyncio.sleep(0.01)
