"""Control groups of native containers and sandboxes, where their tree is writable: limits, and a way to halt.

A group is called `conveyor-<nonce>` and lies beside the one this process is in: what the operator set for that part of
the tree goes for it, and v2, where a group has either processes or groups, allows it there. On v1 there is one for each
controller. The file `cgroups` in the home says which they are. It is written before they are made, so that whoever
removes the home finds them, whatever was killed meanwhile.

Blocking, but all of it is short; `remove` waits for what it kills.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from conveyor_runtime.errors import BackendError, TerminalError
from conveyor_runtime.orchestra.checks import Wish
from conveyor_runtime.orchestra.task import Limits

__all__ = [
    "Controller",
    "add_freezer",
    "ensure",
    "enter",
    "freeze",
    "groups_of",
    "kept_wishes",
    "limits_of",
    "members",
    "note",
    "oom_kills",
    "places",
    "remove",
    "thaw",
]

Controller = Literal["memory", "pids", "cpu", "freezer"]

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_WISHES: dict[Wish, Controller] = {"memory limit": "memory", "pids limit": "pids", "cpu limit": "cpu"}
_PERIOD, _LEAST = 100_000, 1000  # microseconds; the least part of a period that the kernel takes
_PATIENCE = 10.0  # seconds for a group to be empty after what was in it has been killed


@functools.cache
def places(root: Path = _ROOT, own: Path = _OWN) -> dict[Controller, Path]:
    """The directory in which each controller's groups can be made; without those that are not there, or not for us.
    Looked for once."""
    paths = {}
    for line in _read(own).splitlines():
        _, names, path = line.split(":", 2)
        paths.update(dict.fromkeys(names.split(","), path))
    found: dict[Controller, Path] = {}
    controllers: tuple[Controller, ...] = ("memory", "pids", "cpu", "freezer")
    if (root / "cgroup.controllers").exists():
        place = _beside(root, paths.get("", "/"))
        known = [*_read(place / "cgroup.controllers").split(), "freezer"]  # every group of v2 can be halted
        found = {name: place for name in controllers if name in known}
    else:
        found = {name: _beside(root / name, paths[name]) for name in controllers if name in paths}
    return {name: place for name, place in found.items() if os.access(place, os.W_OK)}


def kept_wishes() -> list[Wish]:
    """The limits that can be kept here."""
    found = places()
    return [wish for wish, controller in _WISHES.items() if controller in found]


def note(home: Path, nonce: str, limits: Limits) -> None:
    """Note which groups the home has, if any, to keep the limits; `ensure` makes them."""
    wanted: dict[Controller, int] = {"memory": limits.memory_bytes, "pids": limits.pids, "cpu": limits.cpu_milli}
    if any(wanted.values()):
        found = places()
        _note(home, {name: found[name] / f"conveyor-{nonce}" for name, limit in wanted.items() if limit}, limits)


def limits_of(home: Path) -> Limits:
    """Those that were noted."""
    return Limits(**_noted(home).get("limits", {}))


def groups_of(home: Path) -> list[str]:
    """The groups that were noted, by their paths."""
    return sorted(set(_noted(home).get("groups", {}).values()))


def ensure(home: Path) -> None:
    """Have the groups that are noted, with their limits. Raises `TerminalError` if the kernel refuses one."""
    noted = _noted(home)
    try:
        for controller, path in noted.get("groups", {}).items():
            group, limits = Path(path), Limits(**noted["limits"])
            if (group.parent / "cgroup.subtree_control").exists() and controller != "freezer":
                _write(group.parent / "cgroup.subtree_control", f"+{controller}")
            group.mkdir(exist_ok=True)
            for file, value in _settings(controller, group, limits).items():
                _write(group / file, value)
    except OSError as error:
        raise TerminalError(f"limits cannot be kept here: {error}") from error


def enter(groups: Iterable[str], pid: int) -> None:
    """Move a process; what it starts from then on is in them, too. Raises OSError."""
    for group in groups:
        _write(Path(group, "cgroup.procs"), str(pid))


def members(groups: Iterable[str]) -> set[int]:
    """The processes in them."""
    return {int(pid) for group in groups for pid in _read(Path(group, "cgroup.procs")).split()}


def oom_kills(home: Path) -> int:
    """How many processes the kernel has killed in the home's groups for want of memory."""
    group = _noted(home).get("groups", {}).get("memory")
    for name in ("memory.events", "memory.oom_control") if group else ():
        for line in _read(Path(group, name)).splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill":
                return int(value)
    return 0


def add_freezer(home: Path, nonce: str) -> str:
    """Have a group in which processes can be halted; its path. Raises OSError."""
    noted = _noted(home)
    groups = noted.get("groups", {})
    if "freezer" not in groups:
        _note(home, {**groups, "freezer": places()["freezer"] / f"conveyor-{nonce}"}, limits_of(home))
    group = _noted(home)["groups"]["freezer"]
    Path(group).mkdir(exist_ok=True)
    return str(group)


def freeze(home: Path) -> None:
    """Halt all that is in the home's freezer; returns when it has halted. Raises OSError, `BackendError`."""
    group = Path(_noted(home)["groups"]["freezer"])
    if (group / "freezer.state").exists():
        _write(group / "freezer.state", "FROZEN")
        _until(lambda: _read(group / "freezer.state") == "FROZEN\n")
    else:
        _write(group / "cgroup.freeze", "1")
        _until(lambda: "frozen 1" in _read(group / "cgroup.events"))


def thaw(home: Path) -> None:
    """Let it go on, if it was halted. What is halted takes no signal, on v1 not even SIGKILL."""
    group = _noted(home).get("groups", {}).get("freezer")
    for file, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")) if group else ():
        with contextlib.suppress(OSError):  # of the other version, or removed meanwhile
            _write(Path(group, file), value)


def remove(home: Path) -> None:
    """Kill what is in the home's groups and remove them. Raises `BackendError` if that fails."""
    thaw(home)
    for group in groups_of(home):
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                os.rmdir(group)
            except FileNotFoundError:
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise BackendError(f"the control group {group} cannot be removed: {error}") from error
                for pid in members([group]):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.002)  # it leaves the group a moment after its death


def _settings(controller: str, group: Path, limits: Limits) -> dict[str, str]:
    """Files and what to write to them. `memory.swap.max` and its like are only there where swap is counted."""
    if controller == "pids":
        return {"pids.max": str(limits.pids)}
    if controller == "memory":
        memory = str(limits.memory_bytes)
        wanted = {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory}
        if not (group / "memory.limit_in_bytes").exists():
            wanted = {"memory.max": memory, "memory.swap.max": "0"}
        return {file: value for file, value in wanted.items() if "sw" not in file or (group / file).exists()}
    quota = str(max(_LEAST, limits.cpu_milli * _PERIOD // 1000))
    if (group / "cpu.max").exists():
        return {"cpu.max": f"{quota} {_PERIOD}"} if controller == "cpu" else {}
    return {"cpu.cfs_period_us": str(_PERIOD), "cpu.cfs_quota_us": quota} if controller == "cpu" else {}


def _beside(mount: Path, path: str) -> Path:
    """Where the group `path` has its neighbours. In a container it may be a path of the host, which is not there."""
    group = mount / path.strip("/")
    return mount if group == mount or not group.is_dir() else group.parent


def _note(home: Path, groups: Mapping[Controller, Path], limits: Limits) -> None:
    draft = home / f".cgroups-{secrets.token_hex(8)}"
    noted = {"groups": {name: str(group) for name, group in groups.items()}, "limits": asdict(limits)}
    draft.write_text(json.dumps(noted))
    draft.rename(home / "cgroups")


def _noted(home: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((home / "cgroups").read_text())
        return found if isinstance(found, dict) else {}
    return {}


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise BackendError("processes do not halt")
        time.sleep(0.002)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _write(file: Path, value: str) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CLOEXEC)  # never makes a file, where there is no such tree
    try:
        os.write(handle, value.encode())
    finally:
        os.close(handle)
