"""What is left when a native container ends, or those die who would see to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conveyor_runtime.orchestra import Owner, Task
from conveyor_runtime.orchestra.native import NativeBackend, retiring

OWNER = Owner("inst", "run", "start", 1, 0)
NS = "cv-inst-ends"  # nobody else's: a test that closes it would end these containers, too

# Nobody may kill what belongs to others: as a worker that is not root, whose command may become another by sudo.
POWERLESS = ("setpriv", "--bounding-set=-kill", "--inh-caps=-kill")
WORKER = """
import asyncio, os, sys, time
from pathlib import Path
from conveyor_runtime.orchestra import Owner, Task
from conveyor_runtime.orchestra.native import NativeBackend

OWNER = Owner("inst", "run", "start", 1, 0)

async def main():
    backend = NativeBackend(Path(sys.argv[1]))
    script = "setpriv --reuid=65534 --clear-groups sleep 1000 & echo $! > pid; sleep 0.3; exit 3"
    stubborn = await backend.run("cv-inst-ends", Task("task", command=("sh", "-c", script)), OWNER)
    await asyncio.sleep(0.5)
    before = time.monotonic()
    other = await backend.run("cv-inst-ends", Task("other", command=("sh", "-c", "exit 7")), OWNER)
    assert (await other.wait()).exit_code == 7
    assert time.monotonic() - before < 1, "it waits for the other"
    assert (await stubborn.status()).status == "running", "or this proves nothing"
    assert (await stubborn.wait()).exit_code == 3
    await backend.close()

asyncio.run(main())
"""


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[NativeBackend]:
    backend = NativeBackend(tmp_path / "root")
    yield backend
    await backend.close_namespace(NS, grace=0)
    await backend.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
async def test_a_leftover_that_cannot_be_killed_is_told_of_and_holds_nobody_up(
    backend: NativeBackend, tmp_path: Path
) -> None:
    command = [*POWERLESS, sys.executable, "-c", WORKER, str(tmp_path / "root")]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=30)
    home = tmp_path / "root" / NS / "task"
    left = int((home / "workspace/pid").read_text())
    assert f"cannot be killed: {left}\n" in (home / "stderr").read_text()
    await (await backend.get(NS, "task")).cleanup()
    assert not os.path.exists(f"/proc/{left}") or b"sleep" not in Path(f"/proc/{left}/cmdline").read_bytes()


async def running(word: str, number: int) -> None:
    """Until so many processes have this as one of their arguments."""
    async with asyncio.timeout(10):
        while len(with_argument(word)) != number:
            await asyncio.sleep(0.02)


def with_argument(word: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("end", ["status", "stop", "cleanup"])
async def test_what_one_that_was_lost_left_running_is_ended(backend: NativeBackend, tmp_path: Path, end: str) -> None:
    length = f"1000.{os.getpid()}"
    container = await backend.run(NS, Task("task", command=("sh", "-c", f"sleep {length} & sleep {length}")), OWNER)
    await running(length, 2)
    record = json.loads((tmp_path / "root" / NS / "task/pid").read_text())
    os.kill(record["keeper"], signal.SIGKILL)
    os.kill(record["pid"], signal.SIGKILL)
    await running(length, 2)
    if end == "cleanup":
        await container.cleanup()
    elif end == "stop":
        await container.stop(grace=1)
    else:
        assert (await container.wait()).reason == "gone"
    assert with_argument(length) == []


@pytest.mark.parametrize("by", ["the janitor", "who closes the namespace"])
async def test_what_a_remover_that_was_killed_left_running_is_ended(
    backend: NativeBackend, tmp_path: Path, by: str
) -> None:
    length = f"1001.{os.getpid()}"
    await backend.run(NS, Task("task", command=("sleep", length)), OWNER)
    await running(length, 1)
    place = retiring.retire_one(tmp_path / "root", NS, "task")  # and dies
    assert place is not None
    if by == "the janitor":
        os.utime(place, (0, 0))
        await backend.namespaces("inst")
    else:
        await backend.close_namespace(NS, grace=0)
    assert with_argument(length) == []
    assert not place.exists()


async def test_what_hides_but_for_where_its_output_goes_ends_with_its_container(backend: NativeBackend) -> None:
    length = f"1002.{os.getpid()}"
    other = await backend.run(NS, Task("other", command=("sleep", "1000")), OWNER)  # its keeper has two to tell apart
    script = f"(env -i setsid sleep {length} &); sleep 0.5"  # another session, no environment, and no ancestor
    container = await backend.run(NS, Task("task", command=("sh", "-c", script)), OWNER)
    await running(length, 1)
    assert (await container.wait()).status == "success"
    assert with_argument(length) == []
    assert (await other.status()).status == "running"
