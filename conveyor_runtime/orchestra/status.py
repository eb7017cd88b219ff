"""What became of what was started."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from conveyor_runtime.orchestra.task import Owner, Port

__all__ = ["ContainerStatus", "ExitStatus", "NamespaceInfo", "OnOutput", "OnStat", "Reason", "Stat", "Status", "Stream"]

Stream = Literal["stdout", "stderr"]

OnOutput = Callable[[Stream, bytes], Awaitable[None]]
"""Takes raw bytes as they come. It is awaited before more is read, so a slow taker slows its own source down. Calls of
one exec or follower never overlap; what it raises ends the call it was given to."""

Status = Literal["running", "success", "error", "timeout", "killed", "cancelled"]
Reason = Literal["oom", "signal", "gone", "input"]


@dataclass(frozen=True)
class ExitStatus:
    """How an exec ended; never `running`. `exit_code` is 128 + n for a process that signal n ended."""

    status: Status
    exit_code: int
    reason: Reason | None
    """`signal` or `oom` beside `killed`; None otherwise."""
    started_at: datetime
    finished_at: datetime

    @property
    def seconds(self) -> float:
        """How long it took, in seconds."""
        return (self.finished_at - self.started_at).total_seconds()


@dataclass(frozen=True)
class ContainerStatus:
    """How a container is, or how it ended.

    | status | when |
    |---|---|
    | running | it runs, waits to be started again by its restart policy, or is frozen |
    | success | exit code 0 |
    | error | another exit code; with reason `gone`, it was removed from outside and nobody knows how it ended |
    | error | whatever the exit code, with reason `input`: its stdin was cut off, as source or feeder broke |
    | timeout | it ended when its time was over |
    | killed | a signal ended it (exit code 128 + n): reason `oom` if memory ran out, else `signal` |
    | cancelled | it ended after `stop` was called, whatever the exit code |
    """

    status: Status
    exit_code: int | None
    """None while it runs, and for one that is gone."""
    reason: Reason | None
    started_at: datetime
    finished_at: datetime | None
    """None while it runs."""
    ports: tuple[Port, ...] = ()
    """What is published now, with the addresses and ports that were really bound."""
    restarts: int = 0
    """How often its restart policy has started it again."""

    @property
    def done(self) -> bool:
        """Whether it has ended. A status that is done never changes."""
        return self.status != "running"


@dataclass(frozen=True)
class Stat:
    """Resource usage at one moment. Bytes of network and disk are totals since the start."""

    at: datetime
    cpu_milli: float
    """Thousandths of one CPU, on average since the previous sample."""
    memory_bytes: int
    """Without the page cache that the kernel could drop."""
    memory_limit_bytes: int
    """0 = unlimited."""
    pids: int
    network_in_bytes: int
    network_out_bytes: int
    disk_read_bytes: int
    disk_written_bytes: int


OnStat = Callable[[Stat], Awaitable[None]]
"""Takes one sample."""


@dataclass(frozen=True)
class NamespaceInfo:
    """What a janitor needs to judge one namespace. `created_at` is the youngest thing in it: while something is
    still being added, a namespace is not old."""

    ns: str
    run_id: str
    created_at: datetime
    owners: tuple[Owner, ...] = ()
