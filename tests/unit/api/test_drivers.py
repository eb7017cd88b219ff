"""Drivers as nouns: listed while they are known, forgotten when nobody of them lives."""

from __future__ import annotations

from conveyor_runtime.client import Client
from conveyor_runtime.models import Instance, utc_now
from conveyor_runtime.store import Put, keys
from tests.unit.api.world import World


async def _process(world: World, driver: str, *, ended: bool = False) -> None:
    now = utc_now()
    instance = Instance(id="i", driver=driver, host="h", pid=7, started_at=now, renewed_at=now, ended=ended)
    await world.state.commit(Put(keys.instance("i"), instance))


async def test_a_driver_is_forgotten_once_no_process_of_it_lives(world: World) -> None:
    await world.register("d", "app")
    await _process(world, "d")
    answer = await world.http.delete("/drivers/d")
    assert answer.status_code == 409
    assert "pid 7 on h" in answer.json()["detail"]
    await _process(world, "d", ended=True)
    answer = await world.http.delete("/drivers/d/")
    assert answer.status_code == 204
    revision = answer.headers["Conveyor-Revision"]
    assert int(revision) > 0
    assert (await world.get(f"/drivers?revision={revision}"))["items"] == []
    assert (await world.http.delete("/drivers/d")).status_code == 404
    assert (await world.http.delete("/drivers/D..")).status_code == 400


async def test_a_forgotten_driver_blocks_no_run(world: World) -> None:
    await world.define()
    await world.register("once", "app")
    await world.register("d", "app")
    async with Client("http://api", transport=world.http._transport) as client:
        await client.forget_driver("once")
    run_id = await world.create("a")
    await world.settle()
    assert [step["driver"] for step in (await world.get(f"/runs/{run_id}"))["steps"]] == ["d"]
