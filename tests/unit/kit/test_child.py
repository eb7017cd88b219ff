"""A child is kept running, and does not outlive us."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

import pytest
import uvloop

from conveyor_runtime.kit import identity
from conveyor_runtime.kit.child import Child, end_of


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
    assert first != second
    async with asyncio.timeout(5):
        while child.pid != int(second):  # it may write before its parent has heard that it is there
            await asyncio.sleep(0.01)
    await child.stop(5)
    assert identity.start_time(int(second)) is None
    await asyncio.sleep(0.3)
    assert not running.done() and len(noted.read_text().split()) == 2, "what was stopped stays down"
    running.cancel()


async def test_the_end_is_learnt_though_its_signal_was_missed() -> None:
    class Missed:
        """Has ended; the loop learns of it at the next signal."""

        def __init__(self) -> None:
            self.noticed = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.noticed.set)

        async def wait(self) -> int:
            await self.noticed.wait()
            return 3

    raised, raise_signal = list[int](), signal.raise_signal

    def instead(number: int) -> None:
        raised.append(number)
        raise_signal(signal.SIGUSR1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "raise_signal", instead)
        assert await end_of(Missed(), look_again=0.05) == 3  # type: ignore[arg-type]
    assert raised[0] == signal.SIGCHLD


async def test_one_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    child = child_of("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEP.format(str(noted)))
    running = asyncio.create_task(child.run())
    [pid] = await until_line(noted, 1)
    await child.stop(0.2)
    assert identity.start_time(int(pid)) is None
    running.cancel()


async def test_one_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    noted = tmp_path / "pids"
    spawn, failures = asyncio.create_subprocess_exec, [OSError(11, "no more processes"), SubprocessError("preexec")]

    async def failing(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        if failures:
            raise failures.pop()
        return await spawn(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", failing)
    child = child_of(SLEEP.format(str(noted)))
    running = asyncio.create_task(child.run())
    await until_line(noted, 1)
    assert caplog.text.count("child cannot be started") == 2
    await child.stop(5)
    running.cancel()


async def test_who_minds_an_exit_code_ends_the_supervision() -> None:
    def minds(code: int) -> None:
        if code == 2:
            raise ValueError("not with these settings")

    child = Child("child", [sys.executable, "-c", "raise SystemExit(2)"], dict(os.environ), minds)
    with pytest.raises(ValueError, match="not with these"):
        await asyncio.wait_for(child.run(), 20)


async def test_what_is_stopped_between_two_starts_stays_down(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    child = child_of(f"open({str(noted)!r}, 'a').write('x')")
    running = asyncio.create_task(child.run())
    await until_line(noted, 1)
    while child.pid is not None:
        await asyncio.sleep(0.01)
    await child.stop(1)
    await asyncio.sleep(0.5)
    assert noted.read_text() == "x"
    running.cancel()


@pytest.mark.parametrize("first", ["stop", "hurry"])
async def test_a_hurry_right_beside_the_stop_is_not_lost(tmp_path: Path, first: str) -> None:
    noted = tmp_path / "pids"
    # Two signals that are both there before the process can look at the first.
    script = (
        "import signal, time, os\n"
        "signals, got = {signal.SIGINT, signal.SIGTERM}, []\n"
        "for number in signals: signal.signal(number, lambda *a: got.append(a))\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signals)\n"
        f"open({str(noted)!r}, 'a').write('up ')\n"
        "time.sleep(0.5)\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)\n"
        "while len(got) < 2: time.sleep(0.01)\n"
        f"open({str(noted)!r}, 'a').write('hurried')\n"
    )
    child = child_of(script)
    running = asyncio.create_task(child.run())
    await until_line(noted, 1)
    if first == "hurry":
        child.hurry()
    stopping = asyncio.create_task(child.stop(10))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    child.hurry()
    await stopping
    assert noted.read_text() == "up hurried"
    running.cancel()


async def test_stopping_one_that_never_started_is_nothing() -> None:
    child = child_of("pass")
    child.hurry()
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


def test_it_gets_no_descriptors_but_the_usual_three(tmp_path: Path) -> None:
    """What it starts in its turn, and what outlives it, would hold on to whatever reads our output."""
    noted = tmp_path / "descriptors"
    script = f"import os; found = os.listdir('/proc/self/fd'); open({str(noted)!r}, 'a').write(' '.join(found) + '\\n')"

    async def one() -> list[str]:
        child = child_of(f"{script}; import time; time.sleep(100)")
        running = asyncio.create_task(child.run())
        found = await until_line(noted, 4)
        await child.stop(5)
        running.cancel()
        return found

    # The loop the product runs on, which duplicates descriptors in a way of its own. The fourth is the listing's.
    assert len(uvloop.run(one())) == 4
