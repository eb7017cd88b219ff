"""The stream of dispatches as the engines' out-tray: what has been worked off is thrown away.

What a driver acknowledged stays in the stream for a while, as in the in-tray, and for the same reason. It goes by
purges, one for each subject, up to what its consumer has acknowledged without a gap. Behind a gap (a step that takes an
hour, an event that no host has room for) the run records tell what is over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from conveyor_runtime.bus import Bus, StoredMsg, Tail, subjects
from conveyor_runtime.bus.consumers import list_consumers
from conveyor_runtime.bus.messages import delete_message
from conveyor_runtime.bus.streams import MESSAGES, stream_info
from conveyor_runtime.errors import StoreError
from conveyor_runtime.models.message import H_ATTEMPT, H_RUN, H_STEP, H_TAKEOVER
from conveyor_runtime.store import State

#: Messages of a subject that may lie behind a gap: looking at each, and deleting each, costs far more than a purge.
MOST_BEHIND = 10_000

_AT_ONCE = 100


async def throw_away(bus: Bus, state: State) -> None:
    """Remove the dispatches that have been worked off, and what no consumer is there for. Raises BusUnavailable."""
    info = await stream_info(bus, MESSAGES, subjects=True)
    if info is None:
        raise StoreError(f"the stream {MESSAGES} is missing")
    last = int(info["state"]["last_seq"])
    # Read after `last`: what is up to there and has no consumer now had none that was handed it.
    consumers = await list_consumers(bus, MESSAGES)
    for subject, count in (info["state"].get("subjects") or {}).items():
        served = [it for it in consumers if any(subjects.matches(wanted, subject) for wanted in _filters(it))]
        floor = min((int(it["ack_floor"]["stream_seq"]) for it in served), default=last)
        gone = 0
        if floor:
            gone = (await bus.api(f"STREAM.PURGE.{MESSAGES}", {"filter": subject, "seq": floor + 1}))["purged"]
        waiting = max((int(it["num_pending"]) for it in served), default=0)
        if count - gone - waiting > MOST_BEHIND:
            handed_out = min(int(it["delivered"]["stream_seq"]) for it in served)
            await _delete_behind(bus, state, subject, floor, handed_out)


def _filters(info: dict[str, Any]) -> list[str]:
    """What a consumer filters by."""
    config = info["config"]
    return list(config.get("filter_subjects") or [config.get("filter_subject") or ">"])


async def _delete_behind(bus: Bus, state: State, subject: str, floor: int, handed_out: int) -> None:
    """Delete what lies between the first gap and the newest that was handed out, where its attempt is over."""
    async with contextlib.aclosing(_between(bus, subject, floor + 1, handed_out)) as messages:
        over = [message.seq async for message in messages if await _is_over(state, message)]
    for start in range(0, len(over), _AT_ONCE):
        await asyncio.gather(*(delete_message(bus, MESSAGES, seq) for seq in over[start : start + _AT_ONCE]))


async def _between(bus: Bus, subject: str, first: int, last: int) -> AsyncGenerator[StoredMsg, None]:
    """The stored messages of a subject from `first` to `last`."""
    tail = Tail(bus, MESSAGES, subject, start_seq=first)
    reading = asyncio.ensure_future(anext(tail))
    end = asyncio.ensure_future(tail.caught_up.wait())
    try:
        while True:
            await asyncio.wait({reading, end}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() or reading.result().seq > last:
                return
            yield reading.result()
            reading = asyncio.ensure_future(anext(tail))
    finally:
        end.cancel()
        reading.cancel()
        await tail.aclose()


async def _is_over(state: State, message: StoredMsg) -> bool:
    """Whether a dispatch's attempt is no longer open. What bears no attempt is left for its consumer to say."""
    headers = message.headers
    try:
        run_id, step = headers[H_RUN], headers[H_STEP]
        attempt, takeover = int(headers[H_ATTEMPT]), int(headers[H_TAKEOVER])
    except (KeyError, ValueError):
        return False
    found = state.view.run(run_id) or await state.run(run_id)
    return found is None or not found.record.is_open_at(step, attempt, takeover)
