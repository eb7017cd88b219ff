"""The token bucket that all processes of a driver share."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from conveyor_runtime.bus.rated import RatedSlots
from conveyor_runtime.errors import ConfigError
from conveyor_runtime.reconcile.rate import RateGate, RateLimit
from conveyor_runtime.store import MemoryStore, State, Stored

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class SlowStore(MemoryStore):
    """One whose answers others may overtake."""

    async def get(self, key: str) -> Stored | None:
        found = await super().get(key)
        await asyncio.sleep(0)
        return found


class World:
    """Two processes of one driver, and their clock."""

    def __init__(self, limit: RateLimit, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = NOW
        self.naks: list[float] = []
        self.slots = [RatedSlots(2), RatedSlots(2)]
        state = State(SlowStore())
        self.gates = [RateGate("d", limit, state, slots) for slots in self.slots]
        monkeypatch.setattr("conveyor_runtime.reconcile.rate.utc_now", lambda: self.now)

    async def ask(self, process: int = 0) -> bool:
        slots = self.slots[process]
        assert slots._take(), "a message is handed over only where a slot is free"

        async def nak(delay: float) -> None:
            self.naks.append(delay)
            slots._give()

        return await self.gates[process].lets_pass(cast(Any, SimpleNamespace(nak=nak, headers={})))


@pytest.mark.parametrize(
    ("text", "limit"), [("10/s", RateLimit(10)), ("2.5/m", RateLimit(2.5, 60)), ("1/h", RateLimit(1, 3600))]
)
def test_a_rate_as_text(text: str, limit: RateLimit) -> None:
    assert RateLimit.of(text) == limit
    assert str(limit) == text


@pytest.mark.parametrize(
    ("limit", "text"), [(RateLimit(5, burst=3), "5/s, 3 at once"), (RateLimit(1, 10), "1 per 10 s")]
)
def test_how_a_rate_is_told(limit: RateLimit, text: str) -> None:
    assert str(limit) == text


@pytest.mark.parametrize("text", ["", "10", "10/d", "-1/s", "0/s", "1e3/s"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ConfigError):
        RateLimit.of(text)


async def test_after_a_burst_runs_begin_at_the_rate_whichever_process_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(RateLimit(10, burst=2), monkeypatch)
    assert await world.ask(0) and await world.ask(1)
    assert not await world.ask(0)
    world.now += timedelta(milliseconds=60)
    assert not await world.ask(1)
    assert world.naks == pytest.approx([0.1, 0.04])
    world = World(RateLimit(10, burst=2), monkeypatch)
    passed = 0
    for _ in range(100):
        slots = RatedSlots(1)
        gate = RateGate("d", RateLimit(10, burst=2), world.gates[0]._state, slots)
        slots._take()
        passed += await gate.lets_pass(cast(Any, SimpleNamespace(nak=asyncio.sleep, headers={})))
        world.now += timedelta(milliseconds=10)
    assert passed == 11, "two at once and nine tokens more in the 0.99 s that passed"


async def test_a_clock_that_is_fast_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(RateLimit(10, burst=2), monkeypatch)
    fast, right = world.gates
    world.now += timedelta(hours=1)
    assert await fast._take() is None
    world.now = NOW
    assert await right._take() == pytest.approx(0.1)
    world.now += timedelta(seconds=0.1)
    assert await right._take() is None
    assert await right._take() == pytest.approx(0.1), "the limit holds all the same"


async def test_two_processes_never_take_the_same_token(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(RateLimit(1), monkeypatch)
    assert sorted(await asyncio.gather(world.ask(0), world.ask(1))) == [False, True]


@pytest.mark.looptime
async def test_what_waits_for_a_token_holds_no_slot_and_nothing_is_asked_for_meanwhile() -> None:
    slots = RatedSlots(3)
    assert slots._take() and not slots.free
    slots.another()
    assert slots._take()
    slots.pause(5.0)
    slots._give()
    assert slots.free == 0 and slots._rest == 2
    await asyncio.sleep(4.9)
    assert slots.free == 0
    await asyncio.sleep(0.2)
    assert (slots.free, slots._rest) == (1, 1)


@pytest.mark.looptime
async def test_never_more_than_all_slots_are_taken() -> None:
    slots = RatedSlots(2)
    for _ in range(2):
        assert slots._take()
        slots.another()
    assert slots.free == 0
    slots.pause(1.0)
    await asyncio.sleep(2.0)
    assert slots.free == 0, "both are at work"
    slots._give()
    assert slots.free == 1
    slots._give()
    assert (slots.free, slots._rest) == (1, 1)
