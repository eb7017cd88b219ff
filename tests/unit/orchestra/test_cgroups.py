"""Control groups of the native backend: where they are looked for, what goes into them, and that none is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conveyor_runtime.orchestra import Container, Freezable, Limits, Owner, Sandbox, Task
from conveyor_runtime.orchestra.native import NativeBackend, cgroups
from conveyor_runtime.testing import Said, run

OWNER = Owner("inst", "run", "start", 1, 0)
NS = "cv-inst-groups"  # nobody else's: to close it ends whatever bears its name on this machine
SMALL = Limits(memory_bytes=64 << 20, pids=20, cpu_milli=500)

real = pytest.mark.skipif(
    set(cgroups.places()) != {"memory", "pids", "cpu", "freezer"}, reason="no control groups can be made here"
)


def groups(home: Path) -> list[Path]:
    return [Path(group) for group in cgroups.groups_of(home)]


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[NativeBackend]:
    """One whose containers and sandboxes leave no group behind, whatever a test does to them."""
    backend = NativeBackend(tmp_path / "root")
    yield backend
    made = {group for note in tmp_path.glob("root/**/cgroups") for group in groups(note.parent)}
    await backend.close_namespace(NS, grace=0)
    await backend.close()
    assert not [group for group in made if group.exists()]


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).mkdir(parents=True)
    return root


def own(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "own"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def test_on_v1_each_controller_has_a_tree(tmp_path: Path) -> None:
    root = tree(tmp_path / "cgroup", "memory/a/b", "pids", "cpu/a", "freezer")
    lines = ("4:memory:/a/b", "3:pids:/", "2:cpu,cpuacct:/elsewhere", "0::/a")
    assert cgroups.places(root, own(tmp_path, *lines)) == {
        "memory": root / "memory/a",
        "pids": root / "pids",
        "cpu": root / "cpu",
    }


@pytest.mark.parametrize(("path", "place"), [("/a/b", "a"), ("/", ""), ("/of/the/host", "")])
def test_on_v2_all_are_in_one(tmp_path: Path, path: str, place: str) -> None:
    root = tree(tmp_path / "cgroup", "a/b")
    for group in (root, root / "a"):
        (group / "cgroup.controllers").write_text("cpuset cpu memory\n")
    found = cgroups.places(root, own(tmp_path, f"0::{path}"))
    assert found == dict.fromkeys(("memory", "cpu", "freezer"), root / place)


def test_nowhere(tmp_path: Path) -> None:
    assert cgroups.places(tmp_path, tmp_path / "none") == {}


def test_what_is_written_on_either_version(tmp_path: Path) -> None:
    one, two = tree(tmp_path, "v1", "v2") / "v1", tmp_path / "v2"
    for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        (one / name).touch()
    for name in ("memory.swap.max", "cpu.max"):
        (two / name).touch()
    limits = Limits(memory_bytes=1000, pids=7, cpu_milli=1500)
    assert cgroups._settings("memory", one, limits) == {
        "memory.limit_in_bytes": "1000",
        "memory.memsw.limit_in_bytes": "1000",
    }
    assert cgroups._settings("memory", two, limits) == {"memory.max": "1000", "memory.swap.max": "0"}
    assert cgroups._settings("cpu", one, limits) == {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"}
    assert cgroups._settings("cpu", two, Limits(cpu_milli=1)) == {"cpu.max": "1000 100000"}
    assert cgroups._settings("pids", one, limits) == cgroups._settings("pids", two, limits) == {"pids.max": "7"}
    assert cgroups._settings("freezer", one, limits) == cgroups._settings("freezer", two, limits) == {}


@real
async def test_a_limited_container_whose_keeper_is_killed_is_found_and_removed(
    backend: NativeBackend, tmp_path: Path
) -> None:
    # It hides: another session, an environment of its own, and no ancestor.
    script = "env -i setsid sh -c '(sleep 1000 &)'; echo up; exec sleep 1000"
    container = await backend.run(NS, Task("task", command=("sh", "-c", script), limits=SMALL), OWNER)
    await says(container, b"up")
    home = tmp_path / "root" / NS / "task"
    made = groups(home)
    assert len(cgroups.members([str(made[0])])) == 2
    os.kill(json.loads((home / "pid").read_text())["keeper"], signal.SIGKILL)
    other = NativeBackend(tmp_path / "root")
    await (await other.get(NS, "task")).stop(grace=0)
    assert not cgroups.members(map(str, made))
    await (await other.get(NS, "task")).cleanup()
    assert not [group for group in made if group.exists()]
    await other.close()


@real
@pytest.mark.parametrize("end", ["stop", "cleanup", "close", "timeout"])
async def test_what_is_frozen_can_be_ended(backend: NativeBackend, tmp_path: Path, end: str) -> None:
    timeout = 3.0 if end == "timeout" else None  # it must be frozen by then, on a busy machine too
    command = ("sh", "-c", "echo up; sleep 1000 & wait")
    container = await backend.run(NS, Task("task", command=command, timeout=timeout, grace=0.2), OWNER)
    await says(container, b"up")
    assert isinstance(container, Freezable)
    await container.freeze()
    group = groups(tmp_path / "root" / NS / "task")[0]
    async with asyncio.timeout(30):
        if end == "stop":
            await container.stop(grace=0.2)
            assert (await container.status()).status == "cancelled"
        elif end == "timeout":
            assert (await container.wait()).status == "timeout"
        elif end == "cleanup":
            await container.cleanup()
        else:
            await backend.close_namespace(NS, grace=0.2)
    assert not cgroups.members([str(group)])


@real
async def test_a_sandbox_keeps_its_limits(backend: NativeBackend, tmp_path: Path) -> None:
    sandbox: Sandbox = await backend.start_sandbox(NS, Task("sandbox", limits=SMALL), OWNER)
    status, said = await run(sandbox, "echo free; exit 3")
    assert (status.exit_code, said.stdout) == (3, b"free\n")
    status, _ = await run(sandbox, "exec tail /dev/zero")
    assert (status.status, status.reason) == ("killed", "oom")
    status, _ = await run(sandbox, "kill -9 $$")
    assert (status.status, status.reason) == ("killed", "signal")
    status, said = await run(sandbox, "n=0; while [ $n -lt 40 ]; do sleep 5 & n=$((n+1)); done; echo all", timeout=10)
    assert b"all" not in said.stdout
    made = groups(tmp_path / "root" / NS / "sandbox")
    assert len(made) == 3 and cgroups.members([str(made[0])]), "what it has left in the background"
    await sandbox.cleanup()
    assert not [group for group in made if group.exists()]


@real
async def test_what_a_remover_that_was_killed_left_goes_with_its_groups(backend: NativeBackend, tmp_path: Path) -> None:
    await backend.start_sandbox(NS, Task("sandbox", limits=SMALL), OWNER)
    made = groups(tmp_path / "root" / NS / "sandbox")
    retired = tmp_path / "root" / f".gone-{NS}-0123456789abcdef"
    (tmp_path / "root" / NS).rename(retired)
    os.utime(retired, (0, 0))
    assert await backend.namespaces("inst") == []
    assert not retired.exists()
    assert not [group for group in made if group.exists()]


async def says(container: Container, word: bytes) -> None:
    said = Said()
    following = asyncio.create_task(container.logs(said))
    await said.until(word)
    following.cancel()
    await asyncio.wait([following])
