"""Native containers and the process that stays with them, when others die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conveyor_runtime.orchestra import Owner, RestartPolicy, Task
from conveyor_runtime.orchestra.native import NativeBackend
from tests.support.disk import small_disk

OWNER = Owner("inst", "run", "start", 1, 0)
NS = "cv-inst-keeper"  # nobody else's: a test that closes it would end these containers, too

WORKER = """
import asyncio, sys
from pathlib import Path
from conveyor_runtime.orchestra import Owner, RestartPolicy, Task
from conveyor_runtime.orchestra.native import NativeBackend

async def main():
    backend = NativeBackend(Path(sys.argv[1]))
    policy, timeout = RestartPolicy(sys.argv[3]), eval(sys.argv[4])
    task = Task("task", command=("sh", "-c", sys.argv[2]), restart=policy, timeout=timeout)
    await backend.run("cv-inst-keeper", task, Owner("inst", "run", "start", 1, 0))
    print("up", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


def abandon(root: Path, script: str, policy: str = "no", timeout: float | None = None) -> None:
    """Have a worker start a container, and kill the worker."""
    arguments = [sys.executable, "-c", WORKER, str(root), script, policy, repr(timeout)]
    worker = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"up\n"
    worker.kill()
    worker.wait()
    worker.stdout.close()


def keeper_of(root: Path) -> int:
    pid = json.loads((root / NS / "task/pid").read_text())["keeper"]
    assert isinstance(pid, int)
    return pid


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while os.path.exists(f"/proc/{pid}") and b"\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
            await asyncio.sleep(0.02)


async def test_a_container_outlives_its_worker_and_says_how_it_ended(tmp_path: Path) -> None:
    abandon(tmp_path, f"echo early; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; echo late; exit 9")
    backend = NativeBackend(tmp_path)
    container = await backend.get(NS, "task")
    assert (await container.status()).status == "running"
    again = await backend.run(NS, Task("task", command=("false",)), OWNER)
    (tmp_path / "go").touch()
    status = await container.wait()
    assert (status.status, status.exit_code) == ("error", 9)
    assert await again.wait() == status
    await gone(keeper_of(tmp_path))
    assert (tmp_path / NS / "task/stdout").read_bytes() == b"early\nlate\n"


async def test_restarts_and_timeouts_go_on_without_a_worker(tmp_path: Path) -> None:
    abandon(tmp_path, "echo x; exit 1", "on-failure", 1.0)
    status = await (await NativeBackend(tmp_path).get(NS, "task")).wait()
    assert status.status == "timeout"
    assert status.restarts >= 1


async def test_a_service_is_stopped_by_another_process(tmp_path: Path) -> None:
    abandon(tmp_path, "sleep 1000", "always")
    container = await NativeBackend(tmp_path).get(NS, "task")
    await container.stop(grace=1)
    assert (await container.status()).status == "cancelled"
    await gone(keeper_of(tmp_path))


async def test_stopped_between_two_starts(tmp_path: Path) -> None:
    backend = NativeBackend(tmp_path)
    container = await backend.run(NS, Task("task", command=("false",), restart=RestartPolicy("always")), OWNER)
    async with asyncio.timeout(10):
        while (await container.status()).restarts < 3:
            await asyncio.sleep(0.02)
        await container.stop()
    assert (await container.status()).status == "cancelled"
    await backend.close()


async def test_a_keeper_that_is_killed_leaves_an_honest_end(tmp_path: Path) -> None:
    backend = NativeBackend(tmp_path)
    container = await backend.run(NS, Task("task", command=("sleep", "1000")), OWNER)
    os.kill(keeper_of(tmp_path), signal.SIGKILL)
    assert (await container.status()).status == "running"
    pid = json.loads((tmp_path / NS / "task/pid").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        status = await container.wait()
    assert (status.status, status.exit_code, status.reason) == ("error", None, "gone")
    assert await (await backend.get(NS, "task")).status() == status
    other = await backend.run(NS, Task("other", command=("true",)), OWNER)
    assert (await other.wait()).status == "success"
    await backend.close()


async def test_a_keeper_ends_with_its_worker(tmp_path: Path) -> None:
    backend = NativeBackend(tmp_path)
    await (await backend.run(NS, Task("task", command=("true",)), OWNER)).wait()
    await backend.close()
    await gone(keeper_of(tmp_path))


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
async def test_signals_are_for_commands_and_not_ignored_by_them(tmp_path: Path, name: str) -> None:
    backend = NativeBackend(tmp_path)
    container = await backend.run(NS, Task("task", command=("sh", "-c", f"kill -{name} $$; echo deaf")), OWNER)
    os.kill(keeper_of(tmp_path), getattr(signal, f"SIG{name}"))
    assert (await container.wait()).status == "killed"
    assert (await backend.run(NS, Task("other", command=("true",)), OWNER)).id
    await backend.close()


async def test_an_end_that_finds_the_disk_full_is_told_once_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "8m") as root:
        backend = NativeBackend(root)
        script = "head -c 100000000 /dev/zero > big 2> /dev/null; exit 7"
        container = await backend.run(NS, Task("task", command=("sh", "-c", script)), OWNER)
        waiting = asyncio.create_task(container.wait())
        [big] = await until_some(lambda: list(root.glob(f"{NS}/task/workspace/big")))
        await asyncio.sleep(1.5)
        assert not waiting.done(), "or this proves nothing"
        big.unlink()
        status = await asyncio.wait_for(waiting, 10)
        assert (status.status, status.exit_code) == ("error", 7)
        await backend.close()


async def test_a_command_that_cannot_be_written_down_ends_only_itself(tmp_path: Path) -> None:
    backend = NativeBackend(tmp_path)
    other = await backend.run(NS, Task("other", command=("sh", "-c", "sleep 1; exit 3")), OWNER)
    poison = await backend.run(NS, Task("poison", command=("sh", "-c", "echo \ud800")), OWNER)
    assert (await poison.wait()).exit_code == 126
    assert (await other.wait()).exit_code == 3
    await backend.close()


async def until_some(look: Callable[[], list[Path]]) -> list[Path]:
    async with asyncio.timeout(10):
        while not (found := look()):
            await asyncio.sleep(0.02)
    return found
