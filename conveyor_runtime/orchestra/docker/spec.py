"""A task in Docker's words: names, labels, limits and what a container may do."""

from __future__ import annotations

from typing import Any

from conveyor_runtime.errors import TerminalError
from conveyor_runtime.orchestra.names import check_task_id
from conveyor_runtime.orchestra.task import Owner, Task

__all__ = [
    "EXECS",
    "LABEL",
    "USER",
    "container_config",
    "container_name",
    "host_config",
    "labels",
    "owner_of",
    "volume_names",
]

LABEL = "conveyor."
USER = f"{LABEL}user"
EXECS = "/.conveyor"
"""Where execs record themselves: in memory, so it needs no place in the image and goes with the container."""

# What building needs: unpack archives with their owners, switch users, use low ports, make device nodes (debootstrap).
_CAPABILITIES = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "MKNOD",
    "AUDIT_WRITE",
    "SETFCAP",
]
# SIGTERM is for the execs, which may take their time to end; the container outlives it and is removed afterwards.
# Without a sleep in the image, a read of a stdin that is never written to waits as well.
_KEEP_ALIVE = "trap '' TERM INT HUP; sleep 2147483647 || while read -r _; do :; done"
_PERIOD = 100_000  # microseconds over which a CPU quota is counted


def container_name(ns: str, task_id: str) -> str:
    """`<namespace>.<task id>`; neither part can hold a dot, so two different pairs never meet in one name."""
    return f"{ns}.{check_task_id(task_id)}"


def volume_names(ns: str, task: Task) -> dict[str, str]:
    """Path inside -> name of the volume that is mounted there."""
    names = {task.workdir: f"{container_name(ns, task.id)}.workspace"}
    for mount in task.mounts:
        if not mount.path.startswith("/") or mount.path in names:
            raise TerminalError(f"mount path {mount.path!r} must be absolute and used once")
        names[mount.path] = f"{ns}.{check_task_id(mount.volume)}"
    return names


def labels(ns: str, task_id: str, owner: Owner) -> dict[str, str]:
    """Whose it is."""
    return {
        f"{LABEL}installation": owner.installation,
        f"{LABEL}run": owner.run_id,
        f"{LABEL}namespace": ns,
        f"{LABEL}task": task_id,
        f"{LABEL}step": owner.step,
        f"{LABEL}attempt": str(owner.attempt),
        f"{LABEL}takeover": str(owner.takeover),
    }


def owner_of(found: dict[str, str]) -> Owner:
    """The owner that `labels` wrote."""
    return Owner(
        installation=found.get(f"{LABEL}installation", ""),
        run_id=found.get(f"{LABEL}run", ""),
        step=found.get(f"{LABEL}step", ""),
        attempt=_number(found.get(f"{LABEL}attempt")),
        takeover=_number(found.get(f"{LABEL}takeover")),
    )


def container_config(task: Task, user: str, marks: dict[str, str], found: dict[str, str]) -> dict[str, Any]:
    """Arguments of `create_container`, without the host's part. `found` are the labels.

    The container itself belongs to root and `user` is only noted, for the execs: with a container of another user,
    no-new-privileges would leave even root's execs without the rights to look after it.
    """
    return {
        "image": task.image,
        "entrypoint": ["sh", "-c", _KEEP_ALIVE],
        "command": [],
        "environment": {**task.env, **marks},
        "user": "0",
        "working_dir": task.workdir,
        "stdin_open": True,
        "labels": {**found, USER: user},
        "healthcheck": {"test": ["NONE"]},  # an image's own check would test a service that does not run here
    }


def host_config(api: Any, ns: str, task: Task) -> Any:
    """The host's part: limits, mounts, network, and as few privileges as builds can live with."""
    limits = task.limits
    if limits.disk_bytes:
        raise TerminalError("the docker backend cannot keep a disk limit; leave it out")
    mounts = [
        {"Type": "volume", "Source": name, "Target": path, "VolumeOptions": {"NoCopy": True}}
        for path, name in volume_names(ns, task).items()
    ]
    options: dict[str, Any] = {}
    if limits.cpu_milli:
        options |= {"cpu_period": _PERIOD, "cpu_quota": limits.cpu_milli * _PERIOD // 1000}
    if limits.memory_bytes:
        # Both the same: no swap.
        options |= {"mem_limit": limits.memory_bytes, "memswap_limit": limits.memory_bytes}
    if limits.pids:
        options["pids_limit"] = limits.pids
    return api.create_host_config(
        mounts=mounts,
        network_mode="bridge" if task.network == "default" else task.network,
        init=True,
        cap_drop=["ALL"],
        cap_add=_CAPABILITIES,
        security_opt=["no-new-privileges"],
        tmpfs={EXECS: "rw,nosuid,nodev,noexec,size=16m,mode=1777"},
        **options,
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
