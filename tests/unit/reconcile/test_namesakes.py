"""Whether another process of the name lives. Time is virtual; the other machine's clock is wrong."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from conveyor_runtime.bus import Bus
from conveyor_runtime.kit.identity import ProcessIdentity
from conveyor_runtime.models import Instance, utc_now
from conveyor_runtime.reconcile.namesakes import find_living
from conveyor_runtime.store import MemoryStore, Put, State, keys

pytestmark = pytest.mark.looptime

ELSEWHERE: dict[str, Any] = {"boot_id": "another", "pid_namespace": "x", "pid": 1, "host": "far"}


def now() -> float:
    return asyncio.get_running_loop().time()


class Place:
    def __init__(self) -> None:
        self.state = State(MemoryStore())
        self.bus = SimpleNamespace(connected_since=now())

    async def lease(self, skew: float = 0.0, driver: str = "d", **fields: Any) -> None:
        at = utc_now() + timedelta(seconds=skew)
        instance = Instance(id="i", driver=driver, started_at=at, renewed_at=at, **fields)
        await self.state.commit(Put(keys.instance("i"), instance))

    async def find(self) -> Instance | None:
        return await find_living("d", self.state, cast(Bus, self.bus), now)


@pytest.mark.parametrize("fields", [{"ended": True}, {"gone": "no more"}, {"driver": "other"}])
async def test_what_plainly_is_none_costs_no_time(fields: dict[str, Any]) -> None:
    place, began = Place(), now()
    await place.lease(**{**ELSEWHERE, **fields})
    assert await place.find() is None
    assert now() == began


@pytest.mark.parametrize(("pid", "lives"), [(os.getpid(), True), (2**22 + 1, False)], ids=["alive", "gone"])
async def test_a_process_of_this_machine_is_looked_at(pid: int, lives: bool) -> None:
    place, began = Place(), now()
    await place.lease(skew=-3600, **{**asdict(ProcessIdentity.own()), "pid": pid})
    assert (await place.find() is not None) is lives
    assert now() == began


@pytest.mark.parametrize("skew", [-3600.0, 0.0, 3600.0])
async def test_a_lease_renewed_before_our_eyes_is_alive_whatever_its_clock_says(skew: float) -> None:
    place, began = Place(), now()
    await place.lease(skew, **ELSEWHERE)
    finding = asyncio.create_task(place.find())
    await asyncio.sleep(4)
    assert not finding.done()
    await place.lease(skew + 5, **ELSEWHERE)
    found = await finding
    assert found is not None and found.host == "far"
    assert now() - began < 6


@pytest.mark.parametrize("skew", [-3600.0, 0.0, 3600.0])
async def test_a_silent_lease_is_dead_after_our_own_45_seconds(skew: float) -> None:
    place, began = Place(), now()
    await place.lease(skew, **ELSEWHERE)
    assert await place.find() is None
    assert 45 < now() - began < 48


async def test_silence_counts_anew_after_a_reconnect() -> None:
    place, began = Place(), now()
    await place.lease(**ELSEWHERE)
    finding = asyncio.create_task(place.find())
    await asyncio.sleep(30)
    place.bus.connected_since = now()
    assert await finding is None
    assert 75 < now() - began < 78
