"""A driver that does nothing, for `conveyor driver run tests.benchmarks.noop:driver`."""

from __future__ import annotations

import time
from typing import Any

from conveyor_runtime import Driver, DriverResult

NAME = TYPE = "bench"


async def nothing(payload: str, event: str, run_id: str, logger: Any) -> DriverResult:
    """Succeed, and say when it was that the event arrived here."""
    return DriverResult(success=True, message="done", data={"at": time.monotonic()})


driver = Driver(NAME, (TYPE,), nothing, direct=False)
