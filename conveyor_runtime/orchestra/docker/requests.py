"""What a task asks for: whether docker can keep it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from conveyor_runtime.errors import TerminalError
from conveyor_runtime.orchestra import checks
from conveyor_runtime.orchestra.docker.client import Engine
from conveyor_runtime.orchestra.task import Task

__all__ = ["check_kept"]

_SANDBOX_KEEPS: tuple[checks.Wish, ...] = (
    *("cpu limit", "memory limit", "pids limit", "disk limit", "ulimits"),
    *("mounts", "absolute mount paths", "read-only mounts", "host mounts", "tmpfs"),
    # Not the host's network: whoever may write a task would reach what listens on the machine's loopback only.
    *("user", "privileged", "network none", "network bridge", "named network"),
    "the image's own command",
)
_CONTAINER_KEEPS: tuple[checks.Wish, ...] = (
    *_SANDBOX_KEEPS,
    *("restart policy", "timeout", "stdin", "volume sizes", "ports", "publish all ports"),
)


def check_kept(task: Task, engine: Engine, host_paths: Iterable[Path], *, sandbox: bool) -> None:
    """Raise `TerminalError` for a task that this engine could not keep, apart from its network (`Placing`)."""
    checks.check_task(task)
    checks.refuse(task, "docker", _SANDBOX_KEEPS if sandbox else _CONTAINER_KEEPS)
    if sandbox and task.command:
        raise TerminalError("a sandbox on docker has no command of its own; its execs have")
    checks.check_host_mounts(task, host_paths)
    if not task.image:
        raise TerminalError("a task on docker needs an image")
    if task.limits.disk_bytes and not engine.limits_disk:
        raise TerminalError("this docker engine's storage driver cannot keep a disk limit; leave it out")
