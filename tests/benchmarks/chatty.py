"""A driver that logs, for `conveyor driver run tests.benchmarks.chatty:driver`."""

from __future__ import annotations

import asyncio
import time

import orjson

from conveyor_runtime import Driver, DriverLogger, DriverResult

NAME = "chatty"

_TICK = 0.002


async def talk(payload: str, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
    """Log `lines` lines that begin with the wall clock: as fast as they are stored, or `rate` per second."""
    spec = orjson.loads(payload)["spec"]
    lines, rate, rest = int(spec["lines"]), float(spec["rate"]), "x" * int(spec["length"])
    began, said = time.monotonic(), 0
    while said < lines:
        if not rate:
            await logger.line(f"{time.time():.6f} {rest}")
            said += 1
            continue
        while said < min((time.monotonic() - began) * rate, lines):
            logger.info(f"{time.time():.6f} {rest}")
            said += 1
        await asyncio.sleep(_TICK)
    return DriverResult(success=True, message="said it all")


driver = Driver(NAME, (NAME,), talk, direct=False)
