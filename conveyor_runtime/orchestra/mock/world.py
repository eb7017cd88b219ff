"""Where mock containers live: shared by any number of mock backends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from conveyor_runtime.orchestra.mock.process import Program, says
from conveyor_runtime.orchestra.mock.running import Running
from conveyor_runtime.orchestra.task import Owner, Task

if TYPE_CHECKING:
    from conveyor_runtime.orchestra.mock.sandbox import Sandboxed

__all__ = ["Namespace", "StoredVolume", "World"]


@dataclass
class StoredVolume:
    """One volume: its content is whatever the programs keep in it."""

    owner: Owner
    created_at: datetime
    content: dict[str, Any] = field(default_factory=dict)


@dataclass
class Namespace:
    """What belongs together."""

    containers: dict[str, Running] = field(default_factory=dict)
    sandboxes: dict[str, Sandboxed] = field(default_factory=dict)
    volumes: dict[str, StoredVolume] = field(default_factory=dict)


@dataclass
class _Fault:
    error: Exception
    times: int
    every: int
    calls: int = 0


class World:
    """Programs by task id, of a sandbox's execs by step, or a function that finds one for a task; everything else exits
    with 0 at once."""

    def __init__(self, programs: Mapping[str, Program] | Callable[[Task], Program] | None = None) -> None:
        self._programs = programs or {}
        self._faults: dict[str, list[_Fault]] = {}
        self._epoch: datetime | None = None
        self.namespaces: dict[str, Namespace] = {}

    def fail(self, operation: str, error: Exception, *, times: int = 1, every: int = 1) -> None:
        """Have calls of a backend's or container's method (`prepare`, `run`, `wait`, `exec`, ...) raise
        `error`: each one whose number is a multiple of `every`, counted from now, until that has happened `times`
        times. fn's mock failed every hundredth run; here one says which."""
        self._faults.setdefault(operation, []).append(_Fault(error, times, every))

    def strike(self, operation: str) -> None:
        """Raise what was scripted for this call, if anything."""
        for fault in self._faults.get(operation, []):
            fault.calls += 1
            if fault.times > 0 and fault.calls % fault.every == 0:
                fault.times -= 1
                raise fault.error

    def now(self) -> datetime:
        """The time, as far as the event loop is concerned."""
        elapsed = asyncio.get_running_loop().time()
        if self._epoch is None:
            self._epoch = datetime.now(UTC) - timedelta(seconds=elapsed)
        return self._epoch + timedelta(seconds=elapsed)

    def program(self, task: Task) -> Program:
        """What the task does."""
        if callable(self._programs):
            return self._programs(task)
        return self._programs.get(task.id) or says()
