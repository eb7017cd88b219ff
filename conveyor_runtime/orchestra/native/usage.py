"""What a native container uses, as /proc tells of its processes: with control groups or without."""

from __future__ import annotations

import contextlib
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from conveyor_runtime.orchestra.native import cgroups, records
from conveyor_runtime.orchestra.native.proc import sweep
from conveyor_runtime.orchestra.status import Stat

__all__ = ["Meter"]

_TICKS = os.sysconf("SC_CLK_TCK")
_TIMES = slice(11, 15)
"""Of the fields of `stat` behind the name: time in user and system mode, its own and that of children it waited for."""


class Meter:
    """Takes samples of one container. The network is the machine's, and is not told."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._limit = cgroups.limits_of(home).memory_bytes
        self._before: tuple[float, float] | None = None

    def sample(self) -> Stat | None:
        """The usage now; None the first time, which only begins to count. Blocking."""
        seconds, memory, threads, read, written = 0.0, 0, 0, 0, 0
        pids = sweep(records.targets(self._home), 0)
        for pid in pids:
            with contextlib.suppress(OSError):  # it ends meanwhile
                times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_TIMES]
                seconds += sum(map(int, times)) / _TICKS
                told = _numbers(Path(f"/proc/{pid}/status"))
                memory += 1024 * (told.get("RssAnon", 0) + told.get("RssShmem", 0))
                threads += told.get("Threads", 0)
                moved = _numbers(Path(f"/proc/{pid}/io"))
                read, written = read + moved.get("read_bytes", 0), written + moved.get("write_bytes", 0)
        now, before = time.monotonic(), self._before
        self._before = now, seconds
        if before is None:
            return None
        return Stat(
            at=datetime.now(UTC),
            # An orphan's time goes with it: the sum may then be less than it was.
            cpu_milli=max(0.0, seconds - before[1]) / (now - before[0]) * 1000,
            memory_bytes=memory,
            memory_limit_bytes=self._limit,
            pids=threads,
            network_in_bytes=0,
            network_out_bytes=0,
            disk_read_bytes=read,
            disk_written_bytes=written,
        )


def _numbers(file: Path) -> dict[str, int]:
    """`name: number` of each line that has one."""
    pairs = (line.partition(":")[::2] for line in file.read_text().splitlines())
    return {name: int(words[0]) for name, value in pairs if (words := value.split()) and words[0].isdecimal()}
