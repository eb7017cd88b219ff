"""Find and signal processes by what `/proc` says of them. Blocking: call it in a thread.

A process is known by session and process group, which a daemon leaves, by a marker in its environment, which every
child inherits, and by where a container's output goes. One that does all of it, leaves its session, starts with an
emptied environment *and* writes elsewhere, is found only while a process of its exec is still its ancestor.
"""

from __future__ import annotations

import os
import signal as signals
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from conveyor_runtime.orchestra.native.cgroups import members

__all__ = ["Target", "kill", "outputs_of", "start_of", "sweep"]

_AGAIN = 0.002  # seconds


@dataclass(frozen=True)
class Target:
    """What to look for: any process with the environment entry `mark`, and, if the process `pid` started at `start`
    (clock ticks since boot) still lives, all of its session, its group and its descendants. `start` -1: the number is
    surely its own, although it may have ended (its parent has not reaped it). All of the control groups `groups`, too:
    no process leaves one by itself. And what has one of the files `outputs` as its stdout or stderr: that is so from
    before a command is executed, when its environment is not yet its own."""

    mark: bytes
    pid: int = 0
    start: int = 0
    groups: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Stat:
    pid: int
    parent: int
    group: int
    session: int
    start: int


def sweep(targets: Iterable[Target], signal: int) -> list[int]:
    """Send `signal` (0 = none) to every living process that belongs to a target; returns their ids."""
    stats = {stat.pid: stat for stat in _all()}
    targets = list(targets)
    # A number alone proves nothing, ids are used again: only a leader with the right start time counts.
    leaders = {t.pid for t in targets if t.pid in stats and stats[t.pid].start == t.start}
    leaders |= {t.pid for t in targets if t.pid and t.start == -1}
    marks = {t.mark for t in targets}
    outputs = {output for target in targets for output in target.outputs}
    found = {
        pid
        for pid, stat in stats.items()
        if pid in leaders
        or stat.session in leaders
        or stat.group in leaders
        or _marked(pid, marks)
        or _writes(pid, outputs)
    }
    found |= members(group for target in targets for group in target.groups) & stats.keys()
    found |= _descendants(found, stats)
    found.discard(os.getpid())
    return [pid for pid in sorted(found) if _send(stats[pid], signal)]


def kill(targets: Iterable[Target], patience: float) -> list[int]:
    """SIGKILL to all that belongs to the targets until nothing is left; returns what still is after `patience`
    seconds: it hangs in the kernel, or is another user's."""
    targets, deadline = list(targets), time.monotonic() + patience
    while (left := sweep(targets, signals.SIGKILL)) and time.monotonic() < deadline:
        time.sleep(_AGAIN)
    return left


def outputs_of(home: Path) -> tuple[str, str]:
    """Where what a container's processes say goes, as `/proc` has it."""
    place = os.path.realpath(home)
    return f"{place}/stdout", f"{place}/stderr"


def start_of(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 if it has ended."""
    stat = _stat(pid)
    return stat.start if stat is not None else 0


def _descendants(of: set[int], stats: dict[int, _Stat]) -> set[int]:
    children: dict[int, list[int]] = {}
    for stat in stats.values():
        children.setdefault(stat.parent, []).append(stat.pid)
    seen: set[int] = set()
    todo = list(of)
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in seen:
                seen.add(child)
                todo.append(child)
    return seen


def _all() -> Iterator[_Stat]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _stat(int(name))) is not None:
            yield stat


def _stat(pid: int) -> _Stat | None:
    """None for a process that is gone or only waits to be reaped."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    return _Stat(pid, int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def _marked(pid: int, marks: set[bytes]) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return not marks.isdisjoint(file.read().split(b"\0"))
    except OSError:  # gone, or of another user and so not ours
        return False


def _writes(pid: int, outputs: set[str]) -> bool:
    for number in (1, 2) if outputs else ():
        try:
            if os.readlink(f"/proc/{pid}/fd/{number}") in outputs:
                return True
        except OSError:  # gone, closed, or of another user
            continue
    return False


def _send(stat: _Stat, signal: int) -> bool:
    """Whether that very process was still there."""
    try:
        handle = os.pidfd_open(stat.pid)
    except OSError:
        return False
    try:
        # The handle holds on to a process, but was it the one looked at? Its start time tells.
        now = _stat(stat.pid)
        if now is None or now.start != stat.start:
            return False
        if signal:
            signals.pidfd_send_signal(handle, signal)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    finally:
        os.close(handle)
    return True
