"""Find and signal processes by what `/proc` says of them. Blocking: call it in a thread.

A process is known by session and process group, which a daemon leaves, and by a marker in its environment, which
every child inherits. One that does both, leaves its session *and* starts with an emptied environment, is found only
while a process of its exec is still its ancestor.
"""

from __future__ import annotations

import os
import signal as signals
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from conveyor_runtime.orchestra.native.cgroups import members

__all__ = ["Target", "start_of", "sweep"]


@dataclass(frozen=True)
class Target:
    """What to look for: any process with the environment entry `mark`, and, if the process `pid` started at `start`
    (clock ticks since boot) still lives, all of its session, its group and its descendants. `start` -1: the number is
    surely its own, although it may have ended (its parent has not reaped it). All of the control groups `groups`, too:
    no process leaves one by itself."""

    mark: bytes
    pid: int = 0
    start: int = 0
    groups: tuple[str, ...] = ()


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
    found = {
        pid
        for pid, stat in stats.items()
        if pid in leaders or stat.session in leaders or stat.group in leaders or _marked(pid, marks)
    }
    found |= members(group for target in targets for group in target.groups) & stats.keys()
    found |= _descendants(found, stats)
    found.discard(os.getpid())
    return [pid for pid in sorted(found) if _send(stats[pid], signal)]


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
