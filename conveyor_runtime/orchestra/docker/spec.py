"""A task in Docker's words: names, labels, limits and what a container may do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from conveyor_runtime.errors import TerminalError
from conveyor_runtime.orchestra.checks import mount_path
from conveyor_runtime.orchestra.docker.client import Engine
from conveyor_runtime.orchestra.names import check_task_id
from conveyor_runtime.orchestra.task import Limits, Owner, Port, Task

__all__ = [
    "DIGEST",
    "EXECS",
    "KIND",
    "LABEL",
    "STDIN",
    "USER",
    "container_config",
    "container_name",
    "host_config",
    "labels",
    "limit_options",
    "owner_of",
    "ownership",
    "run_config",
    "sandbox_volumes",
    "time_limit",
    "volume_name",
    "volume_names",
]

LABEL = "conveyor."
USER = f"{LABEL}user"
KIND = f"{LABEL}kind"
DIGEST = f"{LABEL}digest"
STDIN = f"{LABEL}stdin"
"""On a container that is handed input."""
_RESOURCE = f"{LABEL}resource"
_EPOCH = f"{LABEL}epoch"
_TIMES = (f"{LABEL}timeout", f"{LABEL}grace")
_TMPFS = "rw,nosuid,nodev,mode=1777"
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


def volume_name(ns: str, volume: str) -> str:
    """The same for a volume."""
    return f"{ns}.{check_task_id(volume)}"


def volume_names(ns: str, task: Task) -> dict[str, str]:
    """Path inside -> name of the volume that is mounted there."""
    return {mount_path(task, mount.path): volume_name(ns, mount.volume) for mount in task.mounts}


def sandbox_volumes(ns: str, task: Task) -> dict[str, str]:
    """The same of a sandbox, with its workspace."""
    names = {task.workdir: f"{container_name(ns, task.id)}.workspace"}
    for path, name in volume_names(ns, task).items():
        if path in names:
            raise TerminalError(f"mount path {path!r} is the workspace's")
        names[path] = name
    return names


def labels(ns: str, task_id: str, owner: Owner, kind: str) -> dict[str, str]:
    """Whose it is, and what: `sandbox`, `container` or `volume`."""
    return {
        f"{LABEL}installation": owner.installation,
        f"{LABEL}run": owner.run_id,
        f"{LABEL}namespace": ns,
        f"{LABEL}task": task_id,
        f"{LABEL}step": owner.step,
        f"{LABEL}attempt": str(owner.attempt),
        f"{LABEL}takeover": str(owner.takeover),
        **({_RESOURCE: owner.resource} if owner.resource else {}),
        **({_EPOCH: owner.epoch} if owner.epoch else {}),
        KIND: kind,
    }


def ownership(found: Mapping[str, str]) -> dict[str, str]:
    """Those of an object's labels that say whose it is, for what is made on its behalf."""
    return {
        name: text for name, text in found.items() if name.startswith(LABEL) and name not in (*_TIMES, STDIN, DIGEST)
    }


def time_limit(found: Mapping[str, str]) -> tuple[timedelta, float] | None:
    """The timeout and the grace (in seconds) that a container's labels tell, if it has a timeout."""
    if not found.get(_TIMES[0]):
        return None
    return timedelta(seconds=float(found[_TIMES[0]])), float(found.get(_TIMES[1]) or 0)


def owner_of(found: dict[str, str]) -> Owner:
    """The owner that `labels` wrote."""
    return Owner(
        installation=found.get(f"{LABEL}installation", ""),
        run_id=found.get(f"{LABEL}run", ""),
        step=found.get(f"{LABEL}step", ""),
        attempt=_number(found.get(f"{LABEL}attempt")),
        takeover=_number(found.get(f"{LABEL}takeover")),
        resource=found.get(_RESOURCE, ""),
        epoch=found.get(_EPOCH, ""),
    )


def container_config(
    task: Task, user: str, digest: str, marks: dict[str, str], found: Mapping[str, str]
) -> dict[str, Any]:
    """Arguments of `create_container` for a sandbox, without the host's part. `found` are the labels.

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
        "labels": {**found, USER: user, DIGEST: digest},
        "healthcheck": {"test": ["NONE"]},  # an image's own check would test a service that does not run here
    }


def run_config(task: Task, digest: str, found: dict[str, str]) -> dict[str, Any]:
    """Arguments of `create_container` for a container that runs the task's command, without the host's part."""
    times = {_TIMES[0]: str(task.timeout), _TIMES[1]: str(task.grace)} if task.timeout is not None else {}
    stdin = {STDIN: "yes"} if task.stdin != b"" else {}
    config: dict[str, Any] = {
        "image": task.image,
        "environment": dict(task.env),
        "user": task.user or None,
        "working_dir": task.workdir,
        "stdin_open": task.stdin != b"",
        "labels": {**found, **times, **stdin, DIGEST: digest},
        "ports": [(port.container, port.protocol) for port in task.ports],
    }
    if task.command:
        config |= {"entrypoint": list(task.command), "command": []}
    return config


def host_config(engine: Engine, task: Task, volumes: Mapping[str, str], found: Mapping[str, str]) -> Any:
    """The host's part: limits, mounts, network, and as few privileges as builds can live with. `volumes` are names by
    path; one without a name is made for this container and goes with it. `found` are the labels of those, and of any
    that was there and is not when the engine comes to mount it: without labels nobody would ever remove it."""
    read_only = {mount_path(task, mount.path) for mount in task.mounts if mount.read_only}
    mounts = [
        {
            "Type": "volume",
            "Source": name,
            "Target": path,
            "ReadOnly": path in read_only,
            "VolumeOptions": {"NoCopy": True, "Labels": dict(found)},
        }
        for path, name in volumes.items()
    ]
    mounts += [
        {"Type": "bind", "Source": mount.source, "Target": mount.path, "ReadOnly": mount.read_only}
        for mount in task.host_mounts
    ]
    tmpfs = {mount.path: _TMPFS + (f",size={mount.size_bytes}" if mount.size_bytes else "") for mount in task.tmpfs}
    privileges: dict[str, Any] = (
        {"privileged": True}
        if task.privileged
        else {
            "cap_drop": ["ALL"],
            "cap_add": _CAPABILITIES,
            "security_opt": ["no-new-privileges"],
        }
    )
    return engine.api.create_host_config(
        mounts=mounts,
        network_mode="bridge" if task.network == "default" else task.network,
        init=True,
        tmpfs={EXECS: f"{_TMPFS},noexec,size=16m", **tmpfs},
        ulimits=[{"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard} for limit in task.ulimits],
        port_bindings=_bindings(task.ports),
        publish_all_ports=task.publish_all,
        restart_policy={"Name": task.restart.name, "MaximumRetryCount": task.restart.max_retries},
        log_config=engine.log_config,
        **privileges,
        **limit_options(task.limits),
    )


def _bindings(ports: Iterable[Port]) -> dict[str, list[tuple[str, int | None]]]:
    found: dict[str, list[tuple[str, int | None]]] = {}
    for port in ports:
        found.setdefault(f"{port.container}/{port.protocol}", []).append((port.address, port.host or None))
    return found


def limit_options(limits: Limits) -> dict[str, Any]:
    """Those of `create_host_config` that keep the limits."""
    options: dict[str, Any] = {}
    if limits.cpu_milli:
        options |= {"cpu_period": _PERIOD, "cpu_quota": limits.cpu_milli * _PERIOD // 1000}
    if limits.memory_bytes:
        # Both the same: no swap.
        options |= {"mem_limit": limits.memory_bytes, "memswap_limit": limits.memory_bytes}
    if limits.pids:
        options["pids_limit"] = limits.pids
    if limits.disk_bytes:
        options["storage_opt"] = {"size": str(limits.disk_bytes)}
    return options


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
