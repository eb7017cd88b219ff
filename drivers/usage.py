"""What a container used while it ran, as a few points for its result."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from conveyor_runtime.orchestra import Container, Measured, Stat
from conveyor_runtime.orchestra.decimate import decimate

__all__ = ["Usage", "watched"]

log = logging.getLogger(__name__)

_POINTS = 24  # of a result: about 1.5 kB, as it lies in the run's record
_HELD = 480  # while it runs, however long that is


class Usage:
    """Samples of one container, thinned as they come."""

    def __init__(self) -> None:
        self._samples: list[Stat] = []
        self._peak = 0

    async def add(self, sample: Stat) -> None:
        """One more."""
        self._peak = max(self._peak, sample.memory_bytes)
        self._samples.append(sample)
        if len(self._samples) >= _HELD:
            self._samples = decimate(_HELD // 2, self._samples)

    def facts(self) -> dict[str, Any]:
        """For the data of a result; nothing of what ended within its first second."""
        if not self._samples:
            return {}
        points = [
            {
                "at": sample.at.isoformat(timespec="seconds"),
                "cpuMilli": round(sample.cpu_milli),
                "memoryBytes": sample.memory_bytes,
            }
            for sample in decimate(_POINTS, self._samples)
        ]
        return {"usage": {"peakMemoryBytes": self._peak, "points": points}}


@asynccontextmanager
async def watched(container: Container) -> AsyncIterator[Usage]:
    """What it uses within the block, if its backend can tell. That it cannot is no failure of the task."""
    usage = Usage()
    watching = asyncio.create_task(container.stats(usage.add)) if isinstance(container, Measured) else None
    try:
        yield usage
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])
            if not watching.cancelled() and (error := watching.exception()) is not None:
                log.warning("cannot measure container %s: %s", container.id, error)
