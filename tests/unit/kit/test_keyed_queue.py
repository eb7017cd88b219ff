"""One worker per key, whoever adds it and whenever."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise

import pytest

from conveyor_runtime.kit.keyed_queue import KeyedQueue

pytestmark = pytest.mark.looptime


async def test_a_key_is_worked_on_by_one_at_a_time_and_keys_by_many() -> None:
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    together = 0

    async def work(key: str) -> None:
        nonlocal together
        running[key] += 1
        most[key] = max(most[key], running[key])
        together = max(together, sum(running.values()))
        await asyncio.sleep(1)
        running[key] -= 1

    queue = KeyedQueue(work, name="t")
    for _ in range(3):
        for key in "abc":
            queue.add(key)
        await asyncio.sleep(0.3)
    await asyncio.sleep(5)
    assert set(most.values()) == {1} and together == 3 and len(queue) == 0


async def test_what_is_added_meanwhile_gets_exactly_one_more_pass() -> None:
    passes: list[str] = []

    async def work(key: str) -> None:
        passes.append(key)
        await asyncio.sleep(1)

    queue = KeyedQueue(work, name="t")
    queue.add("a")
    await asyncio.sleep(0.5)
    for _ in range(5):
        queue.add("a")
    await asyncio.sleep(5)
    assert passes == ["a", "a"]


async def test_a_failure_is_tried_again_with_growing_waits_until_it_succeeds() -> None:
    loop, at = asyncio.get_running_loop(), []

    async def work(key: str) -> None:
        at.append(loop.time())
        if len(at) < 5:
            raise RuntimeError("not yet")

    queue = KeyedQueue(work, name="t")
    queue.add("a")
    await asyncio.sleep(60)
    assert len(at) == 5 and len(queue) == 0
    gaps = [later - earlier for earlier, later in pairwise(at)]
    for number, gap in enumerate(gaps):
        assert 0.1 * 2**number <= gap <= 0.21 * 2**number
    at.clear()
    queue.add("a")
    await asyncio.sleep(60)
    assert at[1] - at[0] <= 0.21, "a success makes the next failure the first again"


async def test_a_failing_key_holds_up_no_other_and_waits_although_it_was_added_meanwhile() -> None:
    passes: Counter[str] = Counter()

    async def work(key: str) -> None:
        passes[key] += 1
        await asyncio.sleep(0)
        if key == "bad":
            raise RuntimeError("never")

    queue = KeyedQueue(work, name="t")
    queue.add("bad")
    await asyncio.sleep(0)
    queue.add("bad")
    queue.add("good")
    await asyncio.sleep(0.05)
    assert passes == {"bad": 1, "good": 1}
    await queue.close()


async def test_later_is_later_and_sooner_wins() -> None:
    loop, at = asyncio.get_running_loop(), []

    async def work(key: str) -> None:
        at.append((key, round(loop.time() - begun, 1)))

    queue, begun = KeyedQueue(work, name="t"), loop.time()
    queue.add_later("a", 5)
    queue.add_later("b", 5)
    queue.add_later("c", -1)
    await asyncio.sleep(1)
    queue.add("a")
    await asyncio.sleep(30)
    assert at == [("c", 0.0), ("a", 1.0), ("b", 5.0)]


async def test_an_earlier_time_replaces_a_later_one() -> None:
    loop, at = asyncio.get_running_loop(), []

    async def work(key: str) -> None:
        at.append(round(loop.time() - begun, 1))

    queue, begun = KeyedQueue(work, name="t"), loop.time()
    queue.add_later("a", 60)
    queue.add_later("a", 2)
    queue.add_later("a", 30)
    await asyncio.sleep(100)
    assert at == [2.0]


async def test_close_ends_what_runs_and_drops_what_waits() -> None:
    ended: list[str] = []

    async def work(key: str) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            ended.append(key)

    queue = KeyedQueue(work, name="t")
    queue.add("a")
    queue.add_later("b", 1)
    await asyncio.sleep(0.1)
    await queue.close()
    queue.add("c")
    queue.add_later("d", 1)
    await asyncio.sleep(10)
    assert ended == ["a"] and len(queue) == 0
