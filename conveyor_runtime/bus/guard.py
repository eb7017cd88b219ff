"""Puts the configuration of our streams back when somebody else changes it, such as a Go Conveyor engine at its start.

The server tells of a change by an advisory, which is not stored: what happened while we were away is found by a look
after each reconnect. Every process of ours watches; the one that looks first mends, and the others find nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random

from conveyor_runtime.bus.connection import Bus
from conveyor_runtime.bus.streams import STREAMS, put_back
from conveyor_runtime.errors import BusError

__all__ = ["guard_streams"]

log = logging.getLogger(__name__)

#: Seconds, at most, before a look: not all processes at once.
_SPREAD = 1.0

#: Seconds until what could not be put back is tried again.
_AGAIN = 2.0


async def guard_streams(bus: Bus) -> None:
    """Watch for ever."""
    changed, told = set(STREAMS), False
    wake = asyncio.Event()

    def on_advisory(subject: str) -> None:
        if (name := subject.rpartition(".")[2]) in STREAMS:
            changed.add(name)
            wake.set()

    def on_connection(up: bool) -> None:
        if up:
            changed.update(STREAMS)
            wake.set()

    unsubscribe = await bus.subscribe_core(
        "$JS.EVENT.ADVISORY.STREAM.UPDATED.*", lambda message: on_advisory(message.subject)
    )
    stop_listening = bus.add_connection_listener(on_connection)
    try:
        while True:
            await asyncio.sleep(random.uniform(0, _SPREAD))  # noqa: S311 - spreads load, no secret
            wake.clear()
            try:
                await _mend(bus, changed)
            except BusError as error:
                log.log(logging.DEBUG if told else logging.WARNING, "bus: a stream cannot be put back: %s", error)
                told = True
                await asyncio.sleep(_AGAIN)
                continue
            told = False
            if not changed:
                await wake.wait()
    finally:
        stop_listening()
        await unsubscribe()


async def _mend(bus: Bus, changed: set[str]) -> None:
    """Put back what differs of these streams and forget them. Raises BusError at one that cannot be mended now."""
    for name in sorted(changed):
        changed.discard(name)  # before the look: a change that comes during it has the name noted again
        try:
            fields = await put_back(bus, name)
        except BaseException:
            changed.add(name)
            raise
        if fields:
            log.warning(
                "bus: somebody changed %s of stream %s, a Go Conveyor engine on this bus perhaps; put back",
                ", ".join(fields),
                name,
            )
