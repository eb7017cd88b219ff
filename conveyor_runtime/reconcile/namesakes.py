"""Finds another living process of a driver's name, without trusting the clock of another machine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime

from conveyor_runtime.bus import Bus
from conveyor_runtime.kit import identity
from conveyor_runtime.models import LEASE_SILENCE, Instance
from conveyor_runtime.store import State

log = logging.getLogger(__name__)

#: Seconds between two looks at a lease that may be renewed.
_LOOK = 1.0


async def find_living(
    driver: str, state: State, bus: Bus, clock: Callable[[], float] = time.monotonic
) -> Instance | None:
    """A process of `driver` that lives; None once none is left that may.

    Leases that have ended and processes of this machine are judged at once. One of another machine lives if its lease
    is renewed before our eyes, within some 5 s, and is dead after 45 s of our own clock, anew after a reconnect.
    """
    renewed: dict[str, datetime] = {}
    started = clock()
    told = False
    while True:
        doubtful = 0
        for instance in await state.instances():
            if instance.driver != driver or instance.ended or instance.gone:
                continue
            if _is_neighbour(instance):
                if identity.start_time(instance.pid) == instance.start_time:
                    return instance
                continue
            if renewed.setdefault(instance.id, instance.renewed_at) != instance.renewed_at:
                return instance
            doubtful += 1
        connected = bus.connected_since
        if not doubtful or (connected is not None and clock() - max(started, connected) > LEASE_SILENCE):
            return None
        if not told:
            log.info("another machine may still run %s: this is known within %.0f s", driver, LEASE_SILENCE)
            told = True
        await asyncio.sleep(_LOOK)


def _is_neighbour(instance: Instance) -> bool:
    """Whether it runs where a pid means the same to us."""
    return (instance.boot_id, instance.pid_namespace) == (identity.boot_id(), identity.pid_namespace())
