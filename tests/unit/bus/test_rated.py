"""Slots of a driver with a rate: a pause costs time, never a slot."""

from __future__ import annotations

import asyncio

import pytest

from conveyor_runtime.bus.rated import RatedSlots

pytestmark = pytest.mark.looptime


async def taken(slots: RatedSlots) -> None:
    """Take the free slot, as a message that came does."""
    assert slots.free == 1
    assert slots._take()


async def test_one_at_a_time_is_free_until_all_are_taken() -> None:
    slots = RatedSlots(2)
    await taken(slots)
    slots.another()
    await taken(slots)
    slots.another()
    assert slots.free == 0
    slots._give()
    assert slots.free == 1


async def test_a_pause_loses_no_slot_however_many_there_are() -> None:
    slots = RatedSlots(3)
    for _ in range(5):
        await taken(slots)
        slots.another()
        slots.pause(1.0)
        slots._give()
        assert slots.free == 0, "nothing is asked for in a pause"
        await asyncio.sleep(1.1)
    for _ in range(3):
        await taken(slots)
        slots.another()
    assert slots.free == 0
