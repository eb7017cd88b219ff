"""Handles of native containers and sandboxes that were removed and made anew."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conveyor_runtime.errors import Gone
from conveyor_runtime.orchestra import Owner, RestartPolicy, Task
from conveyor_runtime.orchestra.native import NativeBackend
from conveyor_runtime.orchestra.native.container import NativeContainer
from conveyor_runtime.testing import Said

OWNER = Owner("inst", "run", "start", 1, 0)
NS = "cv-inst-handles"  # nobody else's: a test that closes it would end these containers, too
SERVICE = Task("task", command=("sleep", "1000"), restart=RestartPolicy("always"))


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[NativeBackend]:
    backend = NativeBackend(tmp_path / "root")
    yield backend
    await backend.close_namespace(NS, grace=0)
    await backend.close()


async def followed(backend: NativeBackend, task: Task) -> tuple[NativeContainer, NativeContainer]:
    """A handle of a container that is gone, and its successor."""
    old = await backend.run(NS, SERVICE, OWNER)
    await (await backend.get(NS, "task")).cleanup()
    return old, await backend.run(NS, task, OWNER)


async def test_a_handle_leaves_the_next_of_the_name_alone(backend: NativeBackend) -> None:
    old, new = await followed(backend, SERVICE)
    await old.stop(grace=0)
    await old.cleanup()
    assert (await new.status()).status == "running"
    assert (await new.status()).restarts == 0


async def test_a_handle_tells_of_its_own_container(backend: NativeBackend) -> None:
    old, new = await followed(backend, Task("task", command=("sh", "-c", "echo new; exit 5")))
    assert (await new.wait()).exit_code == 5
    status = await old.status()
    assert (status.status, status.reason, status.exit_code) == ("error", "gone", None)
    with pytest.raises(Gone):
        await old.logs(Said())


async def test_a_keeper_that_is_slow_does_not_end_the_next_of_the_name(backend: NativeBackend, tmp_path: Path) -> None:
    keepers = NativeBackend(tmp_path / "root")
    removed = await keepers.run(NS, SERVICE, OWNER)
    process = keepers._keeping._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    await removed.cleanup()
    new = await backend.run(NS, SERVICE, OWNER)
    process.send_signal(signal.SIGCONT)
    await asyncio.to_thread(keepers._keeping._drop)
    async with asyncio.timeout(10):
        while os.path.exists(f"/proc/{process.pid}") and process.poll() is None:
            await asyncio.sleep(0.02)
    assert (await new.status()).status == "running"
    assert not (tmp_path / "root" / NS / "task/exit").exists()


async def test_a_sandbox_leaves_the_next_of_the_name_alone(backend: NativeBackend) -> None:
    old = await backend.start_sandbox(NS, Task("box"), OWNER)
    await (await backend.get_sandbox(NS, "box")).cleanup()
    await backend.start_sandbox(NS, Task("box"), OWNER)
    await old.cleanup()
    assert await backend.get_sandbox(NS, "box")
