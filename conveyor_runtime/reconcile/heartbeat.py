"""Keeps a delivery from being handed to another worker while this one is at it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from conveyor_runtime.bus import Delivery
from conveyor_runtime.errors import InfrastructureError

log = logging.getLogger(__name__)

#: Seconds between two signs to the server that a delivery is still worked on; a third of the consumer's ack_wait.
HEARTBEAT = 10.0


@asynccontextmanager
async def heartbeat(delivery: Delivery) -> AsyncIterator[None]:
    """Tell the server that the delivery is being worked on, for as long as it is."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(HEARTBEAT)
            try:
                await delivery.in_progress()
            except InfrastructureError as error:
                log.debug("no heartbeat for %s: %s", delivery.subject, error)

    task = asyncio.create_task(beat(), name="heartbeat")
    try:
        yield
    finally:
        task.cancel()
