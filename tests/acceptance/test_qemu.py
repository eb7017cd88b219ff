"""In machines: the four drivers build in one, and nothing of it is left, whatever was killed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from conveyor_runtime.client import Client
from tests.acceptance.test_kills import define
from tests.support.processes import Runtime, make_repository, runtime
from tests.support.qemu import guest_image, qemu_processes

__all__ = ["guest_image"]

pytestmark = pytest.mark.qemu


def left(running: Runtime) -> list[str]:
    """Machines and their files."""
    root = running.native_root.with_name(f"{running.native_root.name}-qemu")
    return [*(str(path) for path in root.glob("*cv-*")), *qemu_processes(root)]


async def nothing_left(running: Runtime) -> None:
    async with asyncio.timeout(15):
        while left(running):
            await asyncio.sleep(0.1)


async def until_line(client: Client, run_id: str, message: str) -> None:
    async with asyncio.timeout(60):
        async for line in client.follow_logs(run_id):
            if line.message == message:
                return


async def test_builds_and_a_builder_that_is_killed(tmp_path: Path, guest_image: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    async with runtime(tmp_path, backend="qemu") as running, Client(running.api_url) as client:
        [builder] = running.four_drivers()
        await define(client)

        async def start(name: str, *commands: str, **spec: Any) -> str:
            built = {"repository": repository, "backend": "qemu", "image": "small", "commands": list(commands), **spec}
            return (await client.apply({"name": name, "resource": "ci-build", "spec": built})).run_id

        good = await start("good", "cat README", "uname -r >&2; echo to stderr >&2")
        failing = await start("failing", "exit 7")
        slow = await start("slow", "sleep 60", timeout="2s")
        runs = [await client.wait_run(run_id) for run_id in (good, failing, slow)]
        assert [run.status for run in runs] == ["Succeeded", "Failed", "TimedOut"], running.logs()
        lines = [(line.stream, line.message) for line in await client.logs(good) if line.stream]
        assert lines[0] == ("stdout", "hello")
        assert lines[-1] == ("stderr", "to stderr")
        # The guest's kernel, not this machine's.
        assert lines[1][1] != Path("/proc/sys/kernel/osrelease").read_text().strip()
        killed = await start("killed", "for i in 1 2 3 4; do echo tick $i; sleep 0.7; done")
        await until_line(client, killed, "tick 2")
        assert len(left(running)) == 2
        builder.kill()
        builder.start()
        assert (await client.wait_run(killed)).status == "Succeeded", running.logs()
        ticks = [it.message for it in await client.logs(killed) if it.stream == "stdout" and it.takeover == 1]
        assert ticks == [f"tick {i}" for i in range(1, 5)]
        await nothing_left(running)
