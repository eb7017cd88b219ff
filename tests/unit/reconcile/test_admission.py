"""Which runs a node has room for, over all its processes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from conveyor_runtime.config import DriverSettings
from conveyor_runtime.models import DriverMessage, Instance, NodeUse, Resource, RunRecord, Status, Use, utc_now
from conveyor_runtime.orchestra import Limits
from conveyor_runtime.reconcile import Driver, DriverLogger
from conveyor_runtime.reconcile.admission import Admission
from conveyor_runtime.reconcile.outcome import Outcome
from conveyor_runtime.reconcile.work import Work
from conveyor_runtime.store import MemoryStore, Put, State, keys

GIB = 2**30
HAS = Use(cpu_milli=4000, memory_bytes=8 * GIB, disk_bytes=100 * GIB)


async def reconcile(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> None:
    pass


class Spec(BaseModel):
    cpu_milli: int


async def typed(payload: Resource[Spec], event: str, run_id: str, logger: DriverLogger) -> None:
    pass


def uses(payload: Resource) -> Limits:
    return Limits(**payload.spec)


def work(run_id: str, spec: dict[str, int], event: str = "create") -> Work:
    payload = orjson.dumps({"resource": "thing", "name": "one", "spec": spec}).decode()
    resource = Resource[Any].model_validate_json(payload)
    return Work(run_id, "s", 1, 0, None, None, DriverMessage(event=event, payload=payload), resource)


class World:
    """One process after another of one driver, on a node."""

    def __init__(self) -> None:
        self.state = State(MemoryStore())
        self.driver = Driver("d", ("thing",), reconcile, uses=uses)
        self.free: int | None = None

    async def admit(self, run_id: str, node: str = "n", *, has: Use = HAS, **spec: int) -> Outcome | bool:
        if await self.state.run(run_id) is None:
            await self.status(run_id, Status.RUNNING)
        admission = Admission(self.driver, DriverSettings(), self.state, has, lambda node: self.free)
        return await admission.admit(work(run_id, spec), node)

    async def status(self, run_id: str, status: Status) -> None:
        run = RunRecord(
            run_id=run_id, type="thing", name="one", event="create", generation=1, status=status, created_at=utc_now()
        )
        await self.state.commit(Put(keys.run(run_id), run))

    async def process(self, **fields: Any) -> None:
        base = {"id": "i", "driver": "d", "started_at": utc_now(), "renewed_at": utc_now()}
        await self.state.commit(Put(keys.instance("i"), Instance.model_validate({**base, **fields})))


@pytest.mark.parametrize("limits", [{"cpu_milli": 2000}, {"memory_bytes": 4 * GIB}, {"disk_bytes": 50 * GIB}])
async def test_there_is_room_until_the_node_is_full_and_again_when_a_run_has_ended(limits: dict[str, Any]) -> None:
    world = World()
    assert await world.admit("a", **limits) is True
    assert await world.admit("b", **limits) is True
    assert await world.admit("c", **limits) is False
    assert await world.admit("c", "another-node", **limits) is True
    assert await world.admit("d") is True, "what declares nothing holds nothing"
    await world.status("a", Status.FAILED)
    assert await world.admit("e", **limits) is True
    found = await world.state.node_use("n")
    assert found is not None and set(found.record.runs) == {"b", "e"}


async def test_a_run_that_is_handed_over_has_its_room_already() -> None:
    world = World()
    assert await world.admit("a", cpu_milli=4000) is True
    assert await world.admit("a", cpu_milli=4000) is True
    assert await world.admit("b", cpu_milli=1) is False


async def test_what_a_purged_run_had_is_free() -> None:
    world = World()
    full = NodeUse(runs={"gone": Use(cpu_milli=4000)})
    await world.state.commit(Put(keys.node("n"), full))
    assert await world.admit("a", cpu_milli=4000) is True


async def test_what_no_node_can_ever_hold_is_refused() -> None:
    world = World()
    await world.process(has=HAS)
    refused = await world.admit("a", cpu_milli=5000, memory_bytes=GIB)
    has = "no node has more than 4 CPUs, 8192 MiB of memory, 100.0 GiB of disk"
    assert refused == Outcome(Status.ERROR, f"it asks for 5 CPUs, 1024 MiB of memory; {has}")
    assert await world.admit("b", disk_bytes=101 * GIB) == Outcome(
        Status.ERROR, f"it asks for 101.0 GiB of disk; {has}"
    )


async def test_a_run_waits_until_its_disk_is_free_whoever_has_filled_it() -> None:
    world = World()
    world.free = 30 * GIB
    assert await world.admit("a", disk_bytes=20 * GIB) is True
    assert await world.admit("b", disk_bytes=20 * GIB) is False
    assert await world.admit("c", cpu_milli=1) is True, "what asks for no disk does not wait for it"
    world.free = 40 * GIB
    assert await world.admit("b", disk_bytes=20 * GIB) is True
    world.free = 0
    assert await world.admit("d", disk_bytes=1) is False


async def test_a_disk_nobody_knows_the_size_of_holds_everything() -> None:
    assert await World().admit("a", has=Use(cpu_milli=1), disk_bytes=GIB) is True


@pytest.mark.parametrize(
    ("fields", "waits"),
    [
        ({}, True),
        ({"driver": "another"}, False),
        ({"ended": True}, False),
        ({"gone": "x"}, False),
        ({"renewed_at": utc_now() - timedelta(minutes=5)}, False),
    ],
)
async def test_what_a_larger_node_can_hold_waits_for_it(fields: dict[str, Any], waits: bool) -> None:
    world = World()
    await world.process(**{"has": Use(cpu_milli=16_000, memory_bytes=GIB), **fields})
    admitted = await world.admit("a", cpu_milli=5000)
    assert admitted is False if waits else isinstance(admitted, Outcome)


@pytest.mark.parametrize("event", ["delete", "resync"])
async def test_what_removes_or_repairs_needs_no_room(event: str) -> None:
    world = World()
    admission = Admission(world.driver, DriverSettings(), world.state, HAS, lambda node: None)
    assert await admission.admit(work("a", {"cpu_milli": 5000}, event), "n") is True
    assert await world.state.node_use("n") is None


async def test_what_uses_raises_is_said() -> None:
    world = World()
    assert await world.admit("a", cpu_milli=-1) == Outcome(Status.FAILED, "limit cpu_milli must not be negative")


async def test_what_cannot_be_read_is_left_to_reconcile() -> None:
    world = World()
    world.driver = replace(world.driver, reconcile=typed)
    assert await world.admit("a", memory_bytes=1) is True


@pytest.mark.looptime
async def test_the_more_wait_the_longer_until_each_is_looked_at_again() -> None:
    world = World()
    admission = Admission(world.driver, DriverSettings(), world.state, HAS, lambda node: None)
    waits = [admission.look_again_in() for _ in range(1000)]
    assert (waits[0], waits[199], waits[-1]) == (2.0, 2.0, 10.0)
    await asyncio.sleep(11)
    assert admission.look_again_in() == 2.0, "all of them have been"
