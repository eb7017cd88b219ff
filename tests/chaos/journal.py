"""What workers did, as they saw it: one JSON line each, on disk before the worker goes on."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Names the journal's file to the driver processes.
VARIABLE = "CONVEYOR_CHAOS_JOURNAL"


@dataclass(frozen=True)
class Line:
    """`at` is `time.monotonic()`, one clock for all processes of a machine. `kind` is start or end.

    An end bears `how` (done, failed, stopped) and `lines`, the number of lines given to the logger.
    """

    at: float
    kind: str
    run_id: str
    resource_id: str
    step: str
    attempt: int
    takeover: int
    event: str
    pid: int
    how: str = ""
    lines: int = 0

    @property
    def numbers(self) -> tuple[str, str, int, int]:
        """What names the attempt and takeover."""
        return (self.run_id, self.step, self.attempt, self.takeover)


def write(**fields: Any) -> None:
    """Append a line; it is on disk when this returns."""
    text = json.dumps({"at": time.monotonic(), "pid": os.getpid(), **fields}) + "\n"
    descriptor = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> list[Line]:
    """All lines, oldest first; one that is just being written is left out."""
    texts = path.read_text().split("\n")[:-1] if path.exists() else []
    return sorted((Line(**json.loads(text)) for text in texts), key=lambda line: line.at)


def at_work(path: Path) -> set[int]:
    """Processes that have started more than they have ended."""
    lines = read(path)
    ended = {line.numbers for line in lines if line.kind == "end"}
    return {line.pid for line in lines if line.kind == "start" and line.numbers not in ended}
