"""A native container is started once or not at all, and says which, whoever dies or stands still meanwhile."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from conveyor_runtime.errors import BackendError
from conveyor_runtime.orchestra import Owner, Task
from conveyor_runtime.orchestra.native import NativeBackend, keeping, layout
from conveyor_runtime.orchestra.native.proc import Target, sweep

OWNER = Owner("inst", "run", "start", 1, 0)
NS = "cv-inst-starts"  # nobody else's: a test that closes it would end these containers, too

WORKER = """
import asyncio, os, signal, sys
from pathlib import Path
from conveyor_runtime.orchestra import Owner, Task
from conveyor_runtime.orchestra.native import NativeBackend

async def main():
    backend = NativeBackend(Path(sys.argv[1]))
    keep = backend._keeping.keep

    async def hesitant(job):
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
        return await keep(job)

    backend._keeping.keep = hesitant
    task = Task("task", command=("sh", "-c", sys.argv[2]))
    await backend.run("cv-inst-starts", task, Owner("inst", "run", "start", 1, 0))
    await backend.close()

asyncio.run(main())
"""


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[NativeBackend]:
    backend = NativeBackend(tmp_path / "root")
    yield backend
    await backend.close_namespace(NS, grace=0)
    await backend.close()


def worker(tmp_path: Path, script: str, number: str) -> subprocess.Popen[bytes]:
    """One that gets a signal when it has made the container and not yet had it started."""
    return subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path / "root"), script, number])


def noting(tmp_path: Path) -> str:
    return f"echo ran >> {tmp_path}/ran"


def times_run(tmp_path: Path) -> int:
    return len((tmp_path / "ran").read_text().split()) if (tmp_path / "ran").exists() else 0


@pytest.fixture
def dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Keepers die, once, at the moment of the parameter."""
    monkeypatch.setattr(keeping, "keeper", SimpleNamespace(__name__="tests.unit.orchestra.dying_keeper"))
    monkeypatch.setenv("DIES", f"{request.param} {tmp_path}/died")


@pytest.mark.parametrize("dies", ["asked"], indirect=True)
async def test_a_keeper_that_dies_before_it_begins_leaves_the_start_to_the_next(
    backend: NativeBackend, tmp_path: Path, dies: None
) -> None:
    command = ("sh", "-c", f"cat; {noting(tmp_path)}")
    container = await backend.run(NS, Task("task", command=command, stdin=b"read me"), OWNER)
    assert (tmp_path / "died").exists(), "or this proves nothing"
    assert (await container.wait()).status == "success"
    assert (tmp_path / "root" / NS / "task/stdout").read_bytes() == b"read me"
    assert times_run(tmp_path) == 1


@pytest.mark.parametrize("stdin", [b"", b"read me"])
@pytest.mark.parametrize("dies", ["begun", "forked"], indirect=True)
async def test_a_keeper_that_dies_while_it_begins_is_followed_by_no_second_start(
    backend: NativeBackend, tmp_path: Path, dies: None, stdin: bytes
) -> None:
    command = ("sh", "-c", f"{noting(tmp_path)}; exec sleep 1000")
    container = await backend.run(NS, Task("task", command=command, stdin=stdin), OWNER)
    assert (tmp_path / "died").exists(), "or this proves nothing"
    async with asyncio.timeout(20):
        status = await container.wait()
    assert (status.status, status.reason, status.exit_code) == ("error", "gone", None)
    meta = layout.read_meta(tmp_path / "root" / NS / "task")
    assert meta is not None
    assert sweep([Target(meta.mark.encode())], 0) == []
    again = await backend.run(NS, Task("task", command=command, stdin=stdin), OWNER)
    assert await again.wait() == status
    assert times_run(tmp_path) <= 1


async def test_a_container_whose_maker_died_does_not_run_until_it_is_asked_for_again(
    backend: NativeBackend, tmp_path: Path
) -> None:
    assert worker(tmp_path, noting(tmp_path), "SIGKILL").wait() == -signal.SIGKILL
    container = await backend.get(NS, "task")
    async with asyncio.timeout(5):
        status = await container.wait()
    assert (status.status, status.reason) == ("error", "gone")
    again = await backend.run(NS, Task("task", command=("sh", "-c", noting(tmp_path))), OWNER)
    assert (await again.wait()).status == "success"
    assert times_run(tmp_path) == 1


async def test_one_that_is_stopped_before_it_is_started_never_is(backend: NativeBackend, tmp_path: Path) -> None:
    maker = worker(tmp_path, noting(tmp_path), "SIGSTOP")
    try:
        os.waitid(os.P_PID, maker.pid, os.WSTOPPED)
        container = await backend.get(NS, "task")
        assert (await container.status()).status == "running", "its maker lives"
        before = time.monotonic()
        await container.stop(grace=10)
        assert time.monotonic() - before < 5
        assert (await container.status()).status == "cancelled"
    finally:
        os.kill(maker.pid, signal.SIGCONT)
        assert maker.wait() == 0
    assert (await (await backend.get(NS, "task")).wait()).status == "cancelled"
    assert times_run(tmp_path) == 0


async def test_a_keeper_out_of_descriptors_is_the_backends_failure(backend: NativeBackend, tmp_path: Path) -> None:
    await (await backend.run(NS, Task("first", command=("true",)), OWNER)).wait()
    process = backend._keeping._process
    assert process is not None
    _, most = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    refused = 0
    for spare in range(12):  # what it lacks is a lock, a file, a pipe
        (tmp_path / "ran").unlink(missing_ok=True)
        task = Task(f"task-{spare}", command=("sh", "-c", noting(tmp_path)), stdin=b"x")
        resource.prlimit(
            process.pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{process.pid}/fd")) + spare, most)
        )
        try:
            container = await backend.run(NS, task, OWNER)
        except BackendError:
            refused += 1
            assert (await (await backend.get(NS, task.id)).status()).reason == "gone"
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (most, most))
            container = await backend.run(NS, task, OWNER)
        assert (await container.wait()).status == "success"
        assert times_run(tmp_path) == 1
    assert 3 < refused < 12
