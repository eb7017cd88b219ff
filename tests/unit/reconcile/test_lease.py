"""What a process makes of its own lease: a bus that stays away, a time in which it stood still."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest

from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.reconcile.lease import BUS_ADDRESS, SELF_FENCE, Lease, LeaseLostError
from conveyor_runtime.store import MemoryStore, Put, State, Write, keys


async def test_a_bus_that_stays_away_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, real_sleep = 0.0, asyncio.sleep
    lease = Lease(State(MemoryStore()), "d", (), 1, lambda: now)

    async def away() -> None:
        raise BusUnavailable("not connected")

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        await real_sleep(0)

    monkeypatch.setattr(lease, "renew", away)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    BUS_ADDRESS.set("nats://h:4222")
    with caplog.at_level(logging.WARNING):
        task = asyncio.create_task(lease.run(lambda: None, lambda: None))
        while now < 120:
            await real_sleep(0)
        task.cancel()
    said = [it.getMessage() for it in caplog.records if "ready file" in it.getMessage()]
    assert len(said) == 1
    assert "nats://h:4222 has not answered for 30 s" in said[0]


async def test_from_when_on_what_it_began_may_be_anothers() -> None:
    """Rule 12: there must be time to end it before others, who wait for 45 s, go on with it."""
    now = 100.0
    lease = Lease(State(MemoryStore()), "d", (), 1, lambda: now)
    await lease.renew()
    now += 35
    assert not lease.held() and not lease.abandoned()
    now += 0.1
    assert lease.abandoned()
    await lease.renew()
    assert lease.held() and not lease.abandoned()
    await lease._state.commit(Put(keys.instance(lease.id), None))
    with pytest.raises(LeaseLostError):
        await lease.renew()
    assert lease.abandoned(), "somebody has declared it dead"


@pytest.mark.looptime
async def test_a_lease_that_lapsed_while_the_process_stood_still_is_told_before_it_is_renewed() -> None:
    """Rule 12: its work may be another's by now, however well the renewal goes."""
    now, told, renewals = 0.0, list[str](), asyncio.Queue[bool]()
    lease = Lease(State(MemoryStore()), "d", (), 1, lambda: now)
    await lease.renew()
    task = asyncio.create_task(lease.run(lambda: renewals.put_nowait(lease.held()), lambda: told.append("lapsed")))
    assert await renewals.get()
    assert told == []
    now += SELF_FENCE + 1
    assert not lease.held()
    assert await renewals.get(), "it holds again"
    assert told == ["lapsed"]
    await renewals.get()
    task.cancel()
    assert told == ["lapsed"], "told once"


@pytest.mark.looptime
async def test_a_lease_that_lapsed_while_its_renewal_was_under_way_is_told_at_once() -> None:
    """Rule 12: the process stood still between the sending and the answer."""
    now, told, renewals = 0.0, list[str](), asyncio.Queue[bool]()

    class Slow(MemoryStore):
        async def commit(self, unit: Sequence[Write], *, timeout: float = 10.0) -> list[int]:
            nonlocal now
            revisions = await super().commit(unit)
            now += SELF_FENCE + 1
            return revisions

    lease = Lease(State(Slow()), "d", (), 1, lambda: now)
    await lease.renew()
    now = 0.0
    task = asyncio.create_task(lease.run(lambda: renewals.put_nowait(lease.held()), lambda: told.append("lapsed")))
    assert not await renewals.get()
    task.cancel()
    assert told == ["lapsed"]
