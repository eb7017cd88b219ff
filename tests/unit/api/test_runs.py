"""Runs, drivers, and what the server says of itself."""

from __future__ import annotations

import pytest

from conveyor_runtime.models import Instance, Status, utc_now
from conveyor_runtime.store import Blob, Put, keys
from tests.unit.api.world import World


@pytest.fixture(autouse=True)
async def _defined(world: World) -> None:
    await world.define()
    await world.define("other")


async def ids(world: World, query: str = "") -> list[str]:
    return [it["run_id"] for it in (await world.get(f"/runs{query}"))["items"]]


async def test_a_run_has_the_members_promised(world: World) -> None:
    await world.register("d", "app")
    run_id = await world.create("a")
    await world.run_steps(run_id, Status.FAILED, message="exit code 7")
    run = await world.get(f"/runs/{run_id}/")
    assert set(run) >= {"run_id", "status", "reason", "event", "resource", "pipeline", "created_at", "started_at"}
    assert run["status"] == "Failed"
    assert run["resource"] == {"resource": "app", "name": "a", "generation": 1}
    [step] = run["steps"]
    assert set(step) >= {"id", "name", "driver", "status", "attempt", "message", "exit_code", "node", "data"}
    assert (step["status"], step["message"], step["data"]) == ("Failed", "exit code 7", {"driver": "d", "n": 1})
    assert step["started_at"].endswith("Z")
    assert (await world.get("/runs"))["items"][0]["steps"][0]["data"] is None


async def test_large_data_is_loaded(world: World) -> None:
    await world.register("d", "app")
    run_id = await world.create("a")
    await world.run_steps(run_id, data="small")
    found = await world.state.run(run_id)
    assert found is not None
    key = keys.run_data(run_id, "d", 1)
    step = found.record.steps["d"].model_copy(update={"data": None, "data_key": key})
    run = found.record.model_copy(update={"steps": {"d": step}})
    await world.state.commit(Put(key, Blob({"large": [1]})), Put(keys.run(run_id), run))
    assert (await world.get(f"/runs/{run_id}"))["steps"][0]["data"] == {"large": [1]}
    assert '"data":{"large":[1]}' in (await world.get("/resources/app/a"))["metadata"]["driverresults.d"]


async def test_unknown_runs(world: World) -> None:
    for run_id in ("none", "a.b", "%20", "x" * 200):
        await world.get(f"/runs/{run_id}", 404)
        assert (await world.http.post(f"/runs/{run_id}/cancel")).status_code == 404


async def test_filters(world: World) -> None:
    await world.register("d", "app")
    done = await world.create("a")
    await world.run_steps(done)
    waiting = await world.create("b")
    other = await world.create("a", "other")
    assert await ids(world) == [other, waiting, done]
    assert await ids(world, "?type=app") == [waiting, done]
    assert await ids(world, "?name=a") == [other, done]
    assert await ids(world, "?name=a&type=app") == [done]
    assert await ids(world, "?status=Succeeded") == [done]
    assert await ids(world, "?status=Pending") == [other, waiting]
    assert await ids(world, "?status=Pending&status=Succeeded") == [other, waiting, done]
    assert await ids(world, "?status=Failed") == []
    assert await ids(world, "?pipeline=p") == []
    assert await ids(world, "?pipeline=p&status=Pending&status=Succeeded&type=app") == []
    assert await ids(world, "?status=Pending&status=Succeeded&type=app&name=a") == [done]
    assert await ids(world, f"?status=Pending&cursor={other}") == [waiting]
    assert await ids(world, f"?type=app&cursor={done}") == []
    assert await ids(world, '?name=a","x":"') == []


async def test_pages(world: World) -> None:
    made = [await world.create(f"r{number}") for number in range(5)]
    page = await world.get("/runs?limit=2")
    assert [it["run_id"] for it in page["items"]] == [made[4], made[3]]
    # What is new does not move the pages that follow.
    await world.create("late")
    page = await world.get(f"/runs?limit=2&cursor={page['next_cursor']}")
    assert [it["run_id"] for it in page["items"]] == [made[2], made[1]]
    page = await world.get(f"/runs?limit=2&cursor={page['next_cursor']}")
    assert ([it["run_id"] for it in page["items"]], page["next_cursor"]) == ([made[0]], "")


async def test_cancel(world: World) -> None:
    await world.register("d", "app")
    run_id = await world.create("a")
    answer = await world.http.post(f"/runs/{run_id}/cancel", json={"reason": "wrong branch"})
    assert answer.status_code == 202
    assert answer.headers["conveyor-revision"]
    assert (answer.json()["status"], "wrong branch" in answer.json()["reason"]) == ("Cancelling", True)
    await world.settle()
    run = await world.get(f"/runs/{run_id}")
    assert (run["status"], "wrong branch" in run["reason"]) == ("Cancelled", True)
    again = await world.http.post(f"/runs/{run_id}/cancel/")
    assert (again.status_code, again.json()["status"]) == (200, "Cancelled")
    assert (await world.http.post(f"/runs/{run_id}/cancel", json={"reason": 5})).status_code == 400
    assert (await world.http.post(f"/runs/{run_id}/cancel", json={"reason": "x" * 1001})).status_code == 400


async def test_rerun(world: World) -> None:
    await world.register("d", "app")
    first = await world.create("a", spec={"x": 1})
    await world.run_steps(first)
    await world.settle()
    answer = await world.http.post(f"/runs/{first}/rerun")
    assert answer.status_code == 202, answer.text
    again = answer.json()
    assert (again["event"], again["resource"]) == ("create", {"resource": "app", "name": "a", "generation": 1})
    assert again["run_id"] != first
    assert int(answer.headers["conveyor-revision"]) > 0
    resource = await world.get("/resources/app/a")
    assert (resource["active_run"], resource["generation"]) == (again["run_id"], 1)
    waits = (await world.http.post(f"/runs/{again['run_id']}/rerun")).json()["run_id"]
    assert [it["run_id"] for it in (await world.get("/resources/app/a"))["queue"]] == [waits]


async def test_a_rerun_takes_the_spec_of_now(world: World) -> None:
    await world.register("d", "app")
    first = await world.create("a", spec={"x": 1})
    await world.run_steps(first)
    assert (await world.http.put("/resources/app/a", json={"spec": {"x": 2}})).status_code == 200
    again = (await world.http.post(f"/runs/{first}/rerun")).json()
    found = await world.state.run(again["run_id"])
    assert found is not None and found.record.resource is not None
    assert (found.record.event, found.record.generation, found.record.resource.spec) == ("create", 2, {"x": 2})


async def test_no_rerun_without_the_resource(world: World) -> None:
    await world.register("d", "app", events=("create", "delete"))
    run_id = await world.create("a")
    assert (await world.http.post("/runs/none/rerun")).status_code == 404
    deleting = (await world.http.delete("/resources/app/a")).json()["runid"]
    for one in (run_id, deleting):
        assert (await world.http.post(f"/runs/{one}/rerun")).status_code == 409
    await world.settle()
    await world.run_steps(deleting)
    await world.settle()
    await world.get("/resources/app/a", 404)
    assert (await world.http.post(f"/runs/{run_id}/rerun")).status_code == 404
    await world.create("a")
    assert (await world.http.post(f"/runs/{run_id}/rerun")).status_code == 404, "another of that name"


async def test_drivers(world: World) -> None:
    await world.register("d", "app")
    now = utc_now()
    for id_, fields in (("i1", {}), ("i2", {"ended": True}), ("i3", {"gone": "crashed"}), ("i4", {"driver": "x"})):
        instance = Instance(**{"id": id_, "driver": "d", "started_at": now, "renewed_at": now, "slots": 4, **fields})
        await world.state.commit(Put(keys.instance(id_), instance))
    [driver] = (await world.get("/drivers"))["items"]
    assert (driver["name"], driver["types"], driver["sandbox"]) == ("d", ["app"], False)
    assert [(it["id"], it["slots"]) for it in driver["instances"]] == [("i1", 4)]


async def test_broadcast(world: World) -> None:
    message = {"id": "1", "payload": "{}", "event": "ping", "run_id": "r"}
    assert await world.post("/drivers/broadcast-message", message, 200) == {"message": "message published"}
    assert world.bus.sent == [("application", b'{"event":"ping","payload":"{}","id":"1","run_id":"r"}')]
    world.bus.connected = False
    assert (await world.http.post("/drivers/broadcast-message", json=message)).status_code == 503


async def test_probes(world: World) -> None:
    assert (await world.get("/livez")) == {"status": "ok"}
    assert (await world.get("/readyz"))["parts"] == {"bus": "ok", "view": "ok"}
    world.parts["bus"] = "not connected"
    answer = await world.get("/readyz", 503)
    assert "bus: not connected" in answer["detail"]
    assert answer["parts"]["bus"] == "not connected"
    assert (await world.get("/livez")) == {"status": "ok"}
