"""What of a task makes sense at all, and what of it a backend says it keeps.

A backend names the wishes it keeps, everything else is refused: a new field of `Task` is refused by every backend
until that backend learns it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from conveyor_runtime.errors import TerminalError
from conveyor_runtime.orchestra.names import check_task_id
from conveyor_runtime.orchestra.task import Task

__all__ = ["Wish", "check_host_mounts", "check_sandbox", "check_task", "mount_path", "refuse", "wishes"]

Wish = Literal[
    "cpu limit",
    "memory limit",
    "pids limit",
    "disk limit",
    "ulimits",
    "mounts",
    "absolute mount paths",
    "read-only mounts",
    "volume sizes",
    "host mounts",
    "tmpfs",
    "user",
    "privileged",
    "network none",
    "network bridge",
    "network host",
    "named network",
    "ports",
    "publish all ports",
    "restart policy",
    "timeout",
    "stdin",
    "the image's own command",
]

_NETWORKS: dict[str, Wish] = {"none": "network none", "bridge": "network bridge", "host": "network host"}


def wishes(task: Task) -> set[Wish]:
    """What the task asks for beyond running a command in an environment."""
    limits, mounts, restart = task.limits, task.mounts, task.restart
    asked: dict[Wish, object] = {
        "cpu limit": limits.cpu_milli,
        "memory limit": limits.memory_bytes,
        "pids limit": limits.pids,
        "disk limit": limits.disk_bytes,
        "ulimits": task.ulimits,
        "mounts": mounts,
        "absolute mount paths": any(mount.path.startswith("/") for mount in mounts),
        "read-only mounts": any(mount.read_only for mount in mounts),
        "volume sizes": any(mount.size_bytes for mount in mounts),
        "host mounts": task.host_mounts,
        "tmpfs": task.tmpfs,
        "user": task.user,
        "privileged": task.privileged,
        "ports": task.ports,
        "publish all ports": task.publish_all,
        "restart policy": restart.name != "no",
        "timeout": task.timeout is not None,
        "stdin": task.stdin != b"",
        "the image's own command": not task.command,
    }
    found = {wish for wish, wanted in asked.items() if wanted}
    if task.network != "default":
        found.add(_NETWORKS.get(task.network, "named network"))
    return found


def refuse(task: Task, backend: str, keeps: Collection[Wish]) -> None:
    """Raise `TerminalError`, naming all of it, if the task asks for more than `backend` keeps."""
    missing = sorted(wishes(task) - set(keeps))
    if missing:
        raise TerminalError(f"the {backend} backend cannot keep: {', '.join(missing)}; leave it out, or ask another")


def check_task(task: Task) -> None:
    """Raise `TerminalError` for what no backend could make sense of."""
    check_task_id(task.id)
    _check_texts(task)
    _check_paths(task)
    for port in task.ports:
        if not (0 < port.container < 65536 and 0 <= port.host < 65536):
            raise TerminalError(f"port {port.container} published at {port.host} is out of range")
    for ulimit in task.ulimits:
        if min(ulimit.soft, ulimit.hard) < -1:
            raise TerminalError(f"ulimit {ulimit.name} must be -1 or more")
    restart = task.restart
    if restart.max_retries < 0 or (restart.max_retries and restart.name != "on-failure"):
        raise TerminalError(f"max_retries {restart.max_retries} does not go with restart policy {restart.name}")
    if task.timeout is not None and (task.timeout <= 0 or restart.name in ("always", "unless-stopped")):
        raise TerminalError(f"timeout {task.timeout} must be positive, and does not go with a service that never ends")


def check_sandbox(task: Task) -> None:
    """Raise `TerminalError` for what no sandbox has: its execs have it."""
    check_task(task)
    if task.command or task.stdin != b"" or task.timeout is not None:
        raise TerminalError("a sandbox has no command, stdin or timeout of its own; its execs have")


def mount_path(task: Task, path: str) -> str:
    """Absolute path inside of a mount's path, without `..`."""
    return posixpath.normpath(posixpath.join(task.workdir, path))


def check_host_mounts(task: Task, allowed: Iterable[Path]) -> None:
    """Raise `TerminalError` unless every host mount is, links resolved, at or below one of the operator's paths."""
    roots = [root.resolve() for root in allowed]
    for mount in task.host_mounts:
        source = Path(mount.source)
        if not source.is_absolute() or not any(source.resolve().is_relative_to(root) for root in roots):
            listed = ", ".join(map(str, roots)) or "none"
            raise TerminalError(f"host path {mount.source!r} is not among those the operator has listed ({listed})")


def _check_texts(task: Task) -> None:
    for text in (*task.command, *task.env.values(), task.user, task.workdir, task.image):
        if "\0" in text:
            raise TerminalError(f"{text!r} holds a NUL")
    for name in task.env:
        if not name or "=" in name or "\0" in name:
            raise TerminalError(f"{name!r} cannot be the name of an environment variable")


def _check_paths(task: Task) -> None:
    if not task.workdir.startswith("/"):
        raise TerminalError(f"workdir {task.workdir!r} must be absolute")
    taken: set[str] = set()
    for mount in task.mounts:
        check_task_id(mount.volume)
        inside = mount_path(task, mount.path)
        if not mount.path.startswith("/") and not inside.startswith(task.workdir.rstrip("/") + "/"):
            raise TerminalError(f"mount path {mount.path!r} leads out of the workdir")
        _take(taken, inside, mount.path)
        if mount.size_bytes < 0:
            raise TerminalError(f"the size of volume {mount.volume} must not be negative")
    for path in (*(mount.path for mount in task.host_mounts), *(tmpfs.path for tmpfs in task.tmpfs)):
        if not path.startswith("/"):
            raise TerminalError(f"mount path {path!r} must be absolute")
        _take(taken, posixpath.normpath(path), path)


def _take(taken: set[str], inside: str, path: str) -> None:
    if inside in taken or inside == "/" or "\0" in path:
        raise TerminalError(f"mount path {path!r} is used twice or is none")
    taken.add(inside)
