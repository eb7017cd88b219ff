"""A bus that has our streams, empty, and no others; and what comes back soon there."""

from __future__ import annotations

import asyncio

from conveyor_runtime.bus import Bus
from conveyor_runtime.bus.streams import MESSAGES, consumer_info, ensure_streams
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


async def give_back_after(bus: Bus, consumer: str, seconds: float) -> None:
    """What a killed process had in hand comes back after 30 s; a test has no half minute. The consumer must be there,
    and whoever declares it anew sets it back."""
    info = await consumer_info(bus, MESSAGES, consumer)
    assert info is not None
    config = {**info["config"], "ack_wait": round(seconds * 10**9)}
    await bus.api(
        f"CONSUMER.CREATE.{MESSAGES}.{consumer}", {"stream_name": MESSAGES, "config": config, "action": "update"}
    )
