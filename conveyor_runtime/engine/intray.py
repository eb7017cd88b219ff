"""The stream of results as the engines' in-tray: how far it has been taken in, and what may be thrown away.

Every engine pulls from the one consumer. What is acknowledged stays in the stream for a while: a stream that drops each
message at its acknowledgement writes and syncs a note of that, one by one, which costs more than storing the result in
a group commit did.
"""

from __future__ import annotations

from conveyor_runtime.bus import Bus, subjects
from conveyor_runtime.bus.streams import RESULTS, consumer_info, ensure_consumer, stream_info
from conveyor_runtime.errors import StoreError

#: Results that are out with engines at once, all engines together.
_MOST_OUT = 20_000


async def make_consumer(bus: Bus) -> None:
    """The consumer that all engines share."""
    await ensure_consumer(bus, RESULTS, subjects.RESULT_CONSUMER, filters=["pipelines.>"], max_ack_pending=_MOST_OUT)


async def last_stored(bus: Bus) -> int:
    """The sequence of the newest result. Raises BusUnavailable, StoreError."""
    info = await stream_info(bus, RESULTS)
    if info is None:
        raise StoreError(f"the stream {RESULTS} is missing")
    return int(info["state"]["last_seq"])


async def taken_in(bus: Bus) -> int:
    """The sequence up to which every result has been taken in. Raises BusUnavailable."""
    info = await consumer_info(bus, RESULTS, subjects.RESULT_CONSUMER)
    # Without a consumer none of those that are stored can be known to have been.
    return int(info["ack_floor"]["stream_seq"]) if info is not None else 0


async def throw_away(bus: Bus) -> None:
    """Remove the results that have been taken in."""
    floor = await taken_in(bus)
    if floor:
        await bus.api(f"STREAM.PURGE.{RESULTS}", {"seq": floor + 1})
