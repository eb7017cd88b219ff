"""What a task asks for: whether it can be kept, and how the guest and later processes are told."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from conveyor_runtime.errors import TerminalError
from conveyor_runtime.orchestra.checks import Wish, check_host_mounts, check_task, mount_path, refuse
from conveyor_runtime.orchestra.qemu.layout import TaskMeta, VmMeta
from conveyor_runtime.orchestra.qemu.machines import USER_NETWORK
from conveyor_runtime.orchestra.qemu.vm import VOLUMES
from conveyor_runtime.orchestra.task import Owner, Task

__all__ = ["check_kept", "meta_of", "task_words"]

_KEEPS: tuple[Wish, ...] = (
    *("cpu limit", "memory limit", "pids limit", "mounts", "absolute mount paths", "read-only mounts", "host mounts"),
    *("tmpfs", "user", "privileged", "network none", "named network", "timeout", "stdin"),
)


def check_kept(task: Task, host_paths: tuple[Path, ...], *, sandbox: bool = False) -> None:
    """Raise `TerminalError` for a task that no machine could keep; a sandbox has no command of its own."""
    check_task(task)
    refuse(task, "qemu", [*_KEEPS, "the image's own command"] if sandbox else _KEEPS)
    check_host_mounts(task, host_paths)
    if task.network not in ("default", "none", USER_NETWORK):
        raise TerminalError(f"the qemu backend has the network {USER_NETWORK!r} or none, not {task.network!r}")


def meta_of(task: Task, owner: Owner, machine: VmMeta, job: str = "", watcher: int = 0) -> TaskMeta:
    """What is kept of it."""
    volumes = [mount.volume for mount in task.mounts]
    now = datetime.now(UTC)
    return TaskMeta(owner, dict(task.env), task.user, task.workdir, volumes, now, machine.boot, job, watcher)


def task_words(task: Task, machine: VmMeta) -> list[str]:
    """The arguments of `scripts.TASK`."""
    limits = task.limits
    words = [task.id, task.workdir, task.user]
    words += [str(limits.memory_bytes or "max"), f"{limits.cpu_milli * 100 if limits.cpu_milli else 'max'} 100000"]
    return [*words, str(limits.pids or "max"), *_mounts(task, machine)]


def _mounts(task: Task, machine: VmMeta) -> list[str]:
    """What, where and how of each mount, as the script in the guest takes them."""
    words: list[str] = []
    for mount in task.mounts:
        inside = f"/run/conveyor/share/{VOLUMES}/{mount.volume}"
        words += [inside, mount_path(task, mount.path), "ro" if mount.read_only else ""]
    tags = {(source, read_only): tag for tag, source, read_only in machine.exports}
    for host in task.host_mounts:
        tag = tags[(host.source, host.read_only)]
        words += [f"/run/conveyor/host/{tag}", host.path, "ro" if host.read_only else ""]
    for tmpfs in task.tmpfs:
        words += ["tmpfs", tmpfs.path, f"size={tmpfs.size_bytes}" if tmpfs.size_bytes else "mode=1777"]
    return words
