"""What is made ready before anybody asks, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext

import pytest

from conveyor_runtime.orchestra.warm import WarmPool

pytestmark = pytest.mark.looptime

TTL = 100.0
MAKING = 1.0


class Kitchen:
    """Makes things that are numbers, each in a second."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.gone: list[str] = []
        self.fails = 0
        self.pool: WarmPool[str] = WarmPool(self.prepare, self.make, self.discard, ttl=TTL)

    async def prepare(self, kind: str) -> AbstractContextManager[object]:
        if self.fails:
            self.fails -= 1
            raise RuntimeError("no image")
        return nullcontext()

    async def make(self, kind: str) -> str:
        name = f"{kind}{len(self.made)}"
        self.made.append(name)
        await asyncio.sleep(MAKING)
        return name

    async def discard(self, name: str) -> None:
        self.gone.append(name)


@pytest.fixture
async def kitchen() -> AsyncIterator[Kitchen]:
    found = Kitchen()
    yield found
    await found.pool.close()
    assert len(found.gone) == len(set(found.gone))


async def test_as_many_as_are_wanted_each_handed_out_once(kitchen: Kitchen) -> None:
    kitchen.pool.keep("a", 2)
    assert kitchen.pool.take("a") is None
    await asyncio.sleep(2.5 * MAKING)
    assert (kitchen.made, kitchen.pool.ready("a"), kitchen.pool.ready("b")) == (["a0", "a1"], 2, None)
    assert [kitchen.pool.take("a") for _ in range(3)] == ["a0", "a1", None]
    assert kitchen.pool.take("b") is None
    await asyncio.sleep(2.5 * MAKING)
    assert kitchen.pool.ready("a") == 2
    assert kitchen.gone == []


async def test_old_ones_are_replaced(kitchen: Kitchen) -> None:
    kitchen.pool.keep("a", 1)
    await asyncio.sleep(MAKING + TTL + 0.5)
    assert kitchen.gone == ["a0"]
    assert kitchen.pool.take("a") is None
    await asyncio.sleep(MAKING)
    assert kitchen.pool.take("a") == "a1"


async def test_one_that_is_too_old_is_not_handed_out(kitchen: Kitchen) -> None:
    kitchen.pool.keep("a", 1)
    await asyncio.sleep(2 * MAKING)
    loop = asyncio.get_running_loop()
    found: list[str | None] = []
    loop.call_at(MAKING + TTL, lambda: found.append(kitchen.pool.take("a")))
    await asyncio.sleep(TTL)
    assert found == [None]
    assert kitchen.gone == ["a0"]


async def test_for_a_time_only_and_longer_when_asked_again(kitchen: Kitchen) -> None:
    kitchen.pool.keep("a", 1, seconds=TTL)
    await asyncio.sleep(TTL - 1)
    kitchen.pool.keep("a", 1, seconds=TTL)
    await asyncio.sleep(TTL - 1)
    assert kitchen.pool.ready("a") == 1
    await asyncio.sleep(2 * TTL)
    assert kitchen.pool.ready("a") is None
    assert kitchen.gone == kitchen.made


async def test_kinds_do_not_wait_for_one_that_fails(kitchen: Kitchen) -> None:
    kitchen.fails = 3
    kitchen.pool.keep("a", 1)
    kitchen.pool.keep("b", 1)
    await asyncio.sleep(20)
    assert (kitchen.pool.ready("a"), kitchen.pool.ready("b")) == (1, 1)
    assert kitchen.fails == 0


async def test_a_failure_is_not_repeated_all_the_time(kitchen: Kitchen) -> None:
    kitchen.fails = 1000
    kitchen.pool.keep("a", 3)
    await asyncio.sleep(600)
    assert 5 < 1000 - kitchen.fails < 40


async def test_closed_in_the_midst_nothing_is_left(kitchen: Kitchen) -> None:
    kitchen.pool.keep("a", 3)
    await asyncio.sleep(1.5 * MAKING)
    await kitchen.pool.close()
    assert kitchen.made == ["a0", "a1"]
    assert sorted(kitchen.gone) == ["a0", "a1"]
    await asyncio.sleep(10)
    assert kitchen.made == ["a0", "a1"]


async def test_one_of_no_use_is_taken_away(kitchen: Kitchen) -> None:
    kitchen.pool.keep("a", 1)
    await asyncio.sleep(2 * MAKING)
    taken = kitchen.pool.take("a")
    assert taken is not None
    kitchen.pool.drop(taken)
    await asyncio.sleep(2 * MAKING)
    assert kitchen.gone == ["a0"]
    assert kitchen.pool.ready("a") == 1


async def test_what_is_forgotten_goes_what_is_being_made_too(kitchen: Kitchen) -> None:
    kitchen.pool.keep("a", 2)
    await asyncio.sleep(1.5 * MAKING)
    kitchen.pool.forget("a")
    kitchen.pool.forget("b")
    await asyncio.sleep(2 * MAKING)
    assert (kitchen.made, kitchen.gone) == (["a0", "a1"], ["a0", "a1"])
    assert kitchen.pool.ready("a") is None
