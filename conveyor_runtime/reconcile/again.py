"""Giving back a dispatch that is not worked on yet."""

from __future__ import annotations

from conveyor_runtime.bus import Delivery
from conveyor_runtime.models import is_name
from conveyor_runtime.models.message import H_ATTEMPT, H_ISSUE, H_RUN, H_STEP, H_TAKEOVER
from conveyor_runtime.store import State


async def give_back(delivery: Delivery, state: State, seconds: float) -> None:
    """Have it delivered again in so many seconds; or never, if it has been issued again since.

    Nobody claims what waits here, and its message has been delivered, so the sweep takes it for lost and publishes
    another: without this, a long wait would gather copies. Raises StoreError, BusUnavailable.
    """
    if await _issued_since(delivery, state):
        await delivery.ack()
    else:
        await delivery.nak(seconds)


async def _issued_since(delivery: Delivery, state: State) -> bool:
    headers = delivery.headers
    run_id, step_id = headers.get(H_RUN, ""), headers.get(H_STEP, "")
    found = await state.run(run_id) if is_name(run_id) else None
    known = found.record.steps.get(step_id) if found is not None else None
    numbers = [headers.get(name, "") for name in (H_ATTEMPT, H_TAKEOVER, H_ISSUE)]
    if known is None or not all(number.isdecimal() for number in numbers):
        return False
    return tuple(map(int, numbers)) < (known.attempt, known.takeover, known.issue)
