"""The first that ends ends them all."""

from __future__ import annotations

import asyncio

import pytest

from conveyor_runtime.kit.supervisor import supervise


class Part:
    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def work(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def test_a_failure_ends_the_others_and_is_raised() -> None:
    part = Part()

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await supervise({"good": part.work(), "bad": fail()}, asyncio.Event())
    assert part.ended.is_set()


async def test_a_part_that_just_returns_is_a_failure() -> None:
    async def leave() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="leaver ended though nobody stopped it"):
        await supervise({"leaver": leave(), "good": Part().work()}, asyncio.Event())


async def test_stop_ends_all_without_an_error() -> None:
    part, stop = Part(), asyncio.Event()
    running = asyncio.create_task(supervise({"good": part.work()}, stop))
    await asyncio.sleep(0)
    stop.set()
    await running
    assert part.ended.is_set()


async def test_cancelling_it_ends_all() -> None:
    part = Part()
    running = asyncio.create_task(supervise({"good": part.work()}, asyncio.Event()))
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert part.ended.is_set()
