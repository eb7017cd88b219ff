"""The native backend's files, and what it refuses."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from conveyor_runtime.errors import BackendError, ConfigError, TerminalError
from conveyor_runtime.orchestra import Limits, Mount, NamespaceInfo, Owner, Task, reap
from conveyor_runtime.orchestra.native import NativeBackend, cgroups, layout, retiring
from conveyor_runtime.orchestra.native.proc import Target, sweep

OWNER = Owner("inst", "run", "start", 1, 0)
META = layout.Meta(OWNER, {"A": "b"}, datetime.now(UTC))


def test_root_is_private(tmp_path: Path) -> None:
    root = tmp_path / "a/b"
    NativeBackend(root)
    assert root.stat().st_mode & 0o777 == 0o700
    root.chmod(0o755)
    NativeBackend(root)
    assert root.stat().st_mode & 0o777 == 0o700


def test_root_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link", "file/below"):
        with pytest.raises(ConfigError):
            NativeBackend(tmp_path / name)
    if os.getuid() == 0:
        (tmp_path / "foreign").mkdir()
        os.chown(tmp_path / "foreign", 12345, 12345)
        with pytest.raises(ConfigError, match="must be a directory that belongs"):
            NativeBackend(tmp_path / "foreign")


def test_two_roots_are_two_nodes(tmp_path: Path) -> None:
    assert NativeBackend(tmp_path / "a").node == NativeBackend(tmp_path / "a").node
    assert NativeBackend(tmp_path / "a").node != NativeBackend(tmp_path / "b").node


@pytest.mark.parametrize(
    "task",
    [
        Task("x", limits=Limits(memory_bytes=1 << 30)),
        Task("x", limits=Limits(cpu_milli=1)),
        Task("x", limits=Limits(pids=1)),
        Task("x", mounts=(Mount("cache", "/cache"),)),
        Task("x", user="somebody-else"),
        Task("x", network="none"),
        Task("a/b"),
    ],
    ids=str,
)
async def test_what_cannot_be_kept_is_refused_before_anything_is_made(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "places", dict)  # as for a user who may make no control groups
    backend = NativeBackend(tmp_path / "root")
    with pytest.raises(TerminalError):
        await backend.start_sandbox("cv-inst-run", task, OWNER)
    assert not (tmp_path / "root/cv-inst-run").exists()


async def test_own_user_and_any_image_are_fine(tmp_path: Path) -> None:
    backend = NativeBackend(tmp_path / "root")
    await backend.start_sandbox("cv-inst-run", Task("x", user=str(os.getuid()), image="any"), OWNER)


@pytest.mark.parametrize("ns", ["", ".", "..", "../x", "a/b", ".gone-x", "a\0b"])
async def test_namespaces_that_are_paths_are_refused(tmp_path: Path, ns: str) -> None:
    backend = NativeBackend(tmp_path / "root")
    with pytest.raises(TerminalError):
        await backend.close_namespace(ns)
    with pytest.raises(TerminalError):
        await backend.start_sandbox(ns, Task("x"), OWNER)


def test_what_died_half_way_is_swept_up_when_it_is_old(tmp_path: Path) -> None:
    root = layout.open_root(tmp_path / "root")
    for name in (".new-old", ".gone-old", ".new-young"):
        (root / name / "workspace").mkdir(parents=True)
    for name in (".new-old", ".gone-old"):
        os.utime(root / name, (time.time() - 7200,) * 2)
    layout.make(root, "cv-inst-run", "x", META, layout.SANDBOX_PARTS)
    assert [ns for ns, *_ in layout.namespaces(root)] == ["cv-inst-run"]
    assert sorted(path.name for path in root.iterdir() if path.name.startswith(".")) == [".new-young"]


def test_a_sandbox_is_made_once_and_whole(tmp_path: Path) -> None:
    root = layout.open_root(tmp_path / "root")
    assert layout.make(root, "ns", "x", META, layout.SANDBOX_PARTS)
    assert not layout.make(root, "ns", "x", META, layout.SANDBOX_PARTS)
    assert layout.read_meta(root / "ns/x") == META
    assert (root / "ns/x/meta.json").stat().st_mode & 0o777 == 0o600
    assert not [path for path in root.iterdir() if path.name.startswith(".")]
    (root / "ns/x/meta.json").write_text("{")
    with pytest.raises(BackendError):
        layout.read_meta(root / "ns/x")


async def test_closing_removes_what_a_closer_that_was_killed_left(tmp_path: Path) -> None:
    backend = NativeBackend(tmp_path / "root")
    root = tmp_path / "root"
    for ns in ("cv-inst-run", "cv-inst-run_git_1_0", "cv-inst-run-2"):
        layout.make(root, ns, "x", META, layout.SANDBOX_PARTS)
        retiring.retire(root, ns)
    assert not (root / "cv-inst-run").exists()
    layout.make(root, "cv-inst-run", "x", META, layout.SANDBOX_PARTS)
    await backend.close_namespace("cv-inst-run", grace=0)
    [other] = [path for path in root.iterdir() if path.is_dir()]
    assert other.name.startswith(".gone-cv-inst-run-2-")
    assert await backend.namespaces("inst") == []
    assert other.exists(), "somebody may be at it"
    os.utime(other, (time.time() - 90,) * 2)
    assert await backend.namespaces("inst") == []
    assert not other.exists()


RUN = "019a8f3e-7c1b-7d2a-9c3e-1f2a3b4c5d6e"


async def test_a_broken_sandbox_hides_no_other_and_is_reaped_when_it_is_old(tmp_path: Path) -> None:
    backend = NativeBackend(tmp_path / "root")
    root = tmp_path / "root"
    strangers = ["cv-other-" + RUN, "cv-inst-custom", "notes"]
    broken = [f"cv-inst-{RUN}", f"cv-inst-{RUN}_git_1_0", *strangers]
    for ns in [*broken, "cv-inst-whole"]:
        layout.make(root, ns, "x", META, layout.SANDBOX_PARTS)
    for ns, text in zip(broken, ("", "{", "[]", "{}", "null"), strict=True):
        (root / ns / "x/meta.json").write_text(text)
    empty = f"cv-inst-{RUN[:-1]}0"
    (root / empty).mkdir()
    assert [info.ns for info in await backend.namespaces("inst")] == ["cv-inst-whole"]
    for ns in [*broken, empty]:
        os.utime(root / ns, (time.time() - 7200,) * 2)
    found = {info.ns: info.run_id for info in await backend.namespaces("inst")}
    assert found == {broken[0]: RUN, broken[1]: RUN, "cv-inst-whole": "run", empty: f"{RUN[:-1]}0"}

    async def is_dead(info: NamespaceInfo) -> bool:
        return info.run_id == RUN

    assert await reap(backend, "inst", is_dead) == broken[:2]
    assert sorted(path.name for path in root.iterdir() if path.name in broken) == sorted(strangers)


async def test_a_root_that_cannot_be_listed_is_the_backends_failure(tmp_path: Path) -> None:
    backend = NativeBackend(tmp_path / "root")
    retiring.remove_tree(tmp_path / "root")
    with pytest.raises(BackendError):
        await backend.namespaces("inst")


def test_what_a_sandbox_remembers_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    layout.make(layout.open_root(tmp_path / "root"), "ns", "x", META, layout.SANDBOX_PARTS)
    assert [Path(path).name.partition("-")[0] for path in synced] == ["meta.json", ".new"]


def test_directories_without_write_permission_are_removed() -> None:
    base = Path(tempfile.mkdtemp())
    deep = base / "tree/a/b"
    deep.mkdir(parents=True)
    (deep / "file").touch()
    for path in (deep, deep.parent):
        path.chmod(0o500)
    is_root = os.getuid() == 0
    if is_root:  # to whom no permission is ever missing
        subprocess.run(["chown", "-R", "12345", str(base)], check=True)
        os.seteuid(12345)
    try:
        retiring.remove_tree(base)
    finally:
        if is_root:
            os.seteuid(0)
    assert not (base / "tree").exists()
    retiring.remove_tree(base)


async def test_a_copy_that_is_cancelled_stops_before_it_is_said_to_be_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = await NativeBackend(tmp_path / "root").start_sandbox("cv-inst-run", Task("x"), OWNER)
    source = tmp_path / "source"
    source.mkdir()
    for number in range(50):
        (source / str(number)).touch()
    copied: list[str] = []

    def slowly(one: str, other: str) -> None:
        assert threading.current_thread() is not threading.main_thread()
        copied.append(one)
        time.sleep(0.05)

    monkeypatch.setattr("conveyor_runtime.orchestra.native.sandbox._copy_file", slowly)
    copying = asyncio.create_task(sandbox.copy_in(source, "."))
    async with asyncio.timeout(10):
        while not copied:
            await asyncio.sleep(0.01)
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    done = len(copied)
    assert done < 50
    home = tmp_path / "root/cv-inst-run/x"
    assert os.listdir(home / "workspace") == os.listdir(home / "tmp") == []
    await asyncio.sleep(0.2)
    assert len(copied) == done


async def test_records_of_execs_are_read_off_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = await NativeBackend(tmp_path / "root").start_sandbox("cv-inst-run", Task("x"), OWNER)
    listdir, threads = os.listdir, []

    def noted(path: str) -> list[str]:
        threads.append(threading.current_thread())
        return listdir(path)

    monkeypatch.setattr(os, "listdir", noted)
    assert await sandbox.end_execs("build", (2, 0)) == 0
    assert threads
    assert threading.main_thread() not in threads


def test_a_leader_with_another_start_time_is_somebody_else() -> None:
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        start = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
        assert sweep([Target(b"NO=1", child.pid, start + 1)], 0) == []
        assert sweep([Target(b"NO=1", child.pid, start)], 0) == [child.pid]
        assert sweep([Target(b"NO=1", child.pid, start)], 9) == [child.pid]
        assert child.wait(5) == -9
    finally:
        child.kill()
        child.wait()
