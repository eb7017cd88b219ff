"""A bus that has our streams, empty, and no others."""

from __future__ import annotations

import asyncio

from conveyor_runtime.bus import Bus
from conveyor_runtime.bus.streams import ensure_streams
from conveyor_runtime.errors import BusError


async def fresh_streams(bus: Bus) -> None:
    """Make it one."""
    for name in (await bus.api("STREAM.NAMES"))["streams"] or []:
        await bus.api(f"STREAM.DELETE.{name}")
    # The server clears a deleted stream's files in the background, and refuses a new one of that name meanwhile.
    async with asyncio.timeout(10):
        while True:
            try:
                await ensure_streams(bus)
                break
            except BusError as exc:
                if "error creating store" not in str(exc):
                    raise
                await asyncio.sleep(0.02)
