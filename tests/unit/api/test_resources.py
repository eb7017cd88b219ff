"""Resources, definitions and pipelines as nouns: what is answered, what is a run and what is not."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from conveyor_runtime.models import Status
from tests.unit.api.world import World

STEPS = [
    {"id": "", "name": "clone it", "driver": "d"},
    {"driver": "d", "timeout": "90s"},
    {"id": "third", "driver": "e"},
]


@pytest.fixture(autouse=True)
async def _defined(world: World) -> None:
    await world.define()
    await world.register("d", "app")


async def test_life_of_a_resource(world: World) -> None:
    run_id = await world.create("a", spec={"x": 1}, metadata={"team": "mobile"})
    await world.run_steps(run_id, data={"big": "x" * 10})
    shown = await world.get("/resources/app/a/")
    assert shown["metadata"] == {
        "team": "mobile",
        "version": "1",
        "driverresults.d": '{"success":true,"message":"ok","data":{"big":"xxxxxxxxxx"},"driver":"d"}',
    }
    assert "pipeline" not in shown
    assert shown["last_run"] == run_id
    assert shown["active_run"] is None

    answer = await world.http.put("/resources/app/a", json={"spec": {"x": 2}})
    assert answer.status_code == 200
    assert answer.json()["runid"]
    assert answer.json()["metadata"] == {"team": "mobile", "version": "2"}
    assert answer.json()["active_run"] == answer.json()["runid"]
    assert (await world.get("/resources/app/a/1"))["spec"] == {"x": 1}
    assert (await world.get("/resources/app/a/2"))["spec"] == {"x": 2}
    for version in ("0", "3", "01", "+1", "-1", "1.0", "x", "%D9%A1", "9" * 40):
        await world.get(f"/resources/app/a/{version}", 404)


async def test_what_was_read_can_be_written_back(world: World) -> None:
    await world.run_steps(await world.create("a", spec={"x": 1}, metadata={"team": "mobile"}))
    shown = await world.get("/resources/app/a")
    answer = await world.http.put("/resources/app/a", json=shown)
    assert answer.json()["runid"] == ""
    assert answer.json()["metadata"] == shown["metadata"]


async def test_apply(world: World) -> None:
    document = {"name": "a", "resource": "app", "spec": {"x": 1}}
    first = await world.post("/resources/apply", document)
    assert (first["version"], first["changed"], bool(first["runid"])) == ("1", True, True)
    same = await world.post("/resources/apply/", document, 200)
    assert (same["version"], same["changed"], same["runid"]) == ("1", False, "")
    labelled = await world.post("/resources/apply", {**document, "metadata": {"a": "b"}}, 200)
    assert (labelled["version"], labelled["changed"], labelled["runid"]) == ("2", True, "")
    changed = await world.post("/resources/apply", {**document, "spec": {"x": 2}}, 200)
    assert (changed["version"], changed["changed"], bool(changed["runid"])) == ("3", True, True)


async def test_three_puts(world: World) -> None:
    """The first runs, the second is superseded, the third waits; all of it visible."""
    created = await world.create("a", spec={"x": 0})
    puts = [(await world.http.put("/resources/app/a", json={"spec": {"x": x}})).json()["runid"] for x in (1, 2)]
    await world.settle()
    shown = await world.get("/resources/app/a")
    assert shown["active_run"] == created
    assert [(it["run_id"], it["event"]) for it in shown["queue"]] == [(puts[1], "update")]
    superseded = await world.get(f"/runs/{puts[0]}")
    assert superseded["status"] == "Cancelled"
    assert puts[1] in superseded["reason"]
    await world.run_steps(created)
    assert (await world.get("/resources/app/a"))["active_run"] == puts[1]


async def test_concurrent_puts(world: World) -> None:
    """None is lost, each has a version of its own, and the last one wins."""
    await world.create("a", spec={"x": 0})
    answers = await asyncio.gather(*(world.http.put("/resources/app/a", json={"spec": {"x": x}}) for x in range(1, 21)))
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(int(answer.json()["metadata"]["version"]) for answer in answers) == list(range(2, 22))
    latest = max(answers, key=lambda answer: int(answer.json()["metadata"]["version"])).json()
    assert (await world.get("/resources/app/a"))["spec"] == latest["spec"]
    assert len({answer.json()["runid"] for answer in answers}) == 20


async def test_concurrent_creates(world: World) -> None:
    document = {"name": "a", "resource": "app", "spec": {}}
    answers = await asyncio.gather(*(world.http.post("/resources", json=document) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 9
    assert len(world.state.view.run_ids()) == 1


async def test_delete(world: World) -> None:
    run_id = await world.create("a")
    await world.claim(run_id, "d")
    answer = await world.http.delete("/resources/app/a")
    assert answer.status_code == 202
    assert answer.json()["name"] == "a"
    again = await world.http.delete("/resources/app/a")
    assert again.json()["runid"] == answer.json()["runid"]
    assert (await world.http.put("/resources/app/a", json={"spec": {"x": 1}})).status_code == 409
    assert (await world.http.post("/resources", json={"name": "a", "resource": "app", "spec": {}})).status_code == 409
    await world.run_steps(run_id)
    await world.settle()
    await world.get("/resources/app/a", 404)

    await world.run_steps(await world.create("b"))
    answer = await world.http.delete("/resources/app/b")
    assert (answer.status_code, answer.content) == (204, b"")
    assert int(answer.headers["conveyor-revision"]) > 0
    assert (await world.http.delete("/resources/app/b")).status_code == 404


async def test_delete_by_force(world: World) -> None:
    run_id = await world.create("a")
    waiting = await world.http.delete("/resources/app/a")
    assert waiting.status_code == 202
    forced = await world.http.delete("/resources/app/a?force=true")
    assert forced.status_code == 202
    await world.settle()
    await world.get("/resources/app/a", 404)
    assert (await world.get(f"/runs/{run_id}"))["status"] == "Cancelled"
    assert (await world.http.delete("/resources/app/a?force=perhaps")).status_code == 400


async def test_failed_driver_is_shown(world: World) -> None:
    await world.run_steps(await world.create("a"), Status.FAILED, message="exit code 7")
    result = orjson.loads((await world.get("/resources/app/a"))["metadata"]["driverresults.d"])
    assert result["success"] is False
    assert result["message"] == "exit code 7"


async def test_lists(world: World) -> None:
    await world.define("other")
    for name in ("c", "a", "b"):
        await world.create(name)
    await world.create("z", "other")
    assert [it["name"] for it in (await world.get("/resources"))["items"]] == ["a", "b", "c", "z"]
    assert [it["name"] for it in (await world.get("/resources/?type=other"))["items"]] == ["z"]
    assert [it["name"] for it in (await world.get("/resources/app/"))["items"]] == ["a", "b", "c"]
    names, cursor = [], ""
    while True:
        page = await world.get(f"/resources?limit=2&cursor={cursor}")
        names.append([it["name"] for it in page["items"]])
        if not (cursor := page["next_cursor"]):
            break
    assert names == [["a", "b"], ["c", "z"]]


async def test_lists_see_writes(world: World) -> None:
    answer = await world.http.post("/resources", json={"name": "a", "resource": "app", "spec": {}})
    revision = answer.headers["conveyor-revision"]
    assert answer.headers["location"] == "/resources/app/a"
    answer = await world.http.get("/resources", headers={"Conveyor-Revision": revision})
    assert [it["name"] for it in answer.json()["items"]] == ["a"]


async def test_a_list_that_cannot_be_current_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for = world.state.view.wait_for
    monkeypatch.setattr(world.state.view, "wait_for", lambda revision: wait_for(revision, timeout=0.01))
    for request in ({"params": {"revision": 10**9}}, {"headers": {"Conveyor-Revision": str(10**9)}}):
        answer = await world.http.get("/resources", **request)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"


async def test_definitions(world: World) -> None:
    created = await world.post("/resource-definitions", {"name": "x", "pipeline": None, "description": "d"})
    assert created["queue"] == "supersede"
    assert (await world.post("/resource-definitions", {"name": "x"}, 409))["title"] == "Conflict"
    answer = await world.http.put("/resource-definitions/x", json={"schema": {"type": "object"}})
    assert (answer.status_code, answer.json()["id"], answer.json()["description"]) == (200, created["id"], "")
    assert (await world.http.put("/resource-definitions/y", json={})).status_code == 404
    listed = (await world.get("/resource-definitions"))["items"]
    assert [it["name"] for it in listed] == ["app", "pipeline", "x"]
    assert (await world.get("/resource-definitions/pipeline"))["schema"]["properties"]["steps"]
    answer = await world.http.delete("/resource-definitions/x")
    assert (answer.status_code, bool(answer.headers["conveyor-revision"])) == (204, True)
    await world.get("/resource-definitions/x", 404)
    assert (await world.http.delete("/resource-definitions/pipeline")).status_code >= 400


async def test_pipelines_are_resources(world: World) -> None:
    document = {"name": "p", "resource": "app", "steps": STEPS, "finally": [{"driver": "e"}], "metadata": {"a": 1}}
    written = await world.post("/pipelines/", document)
    assert written["steps"] == [
        {"id": "clone-it", "name": "clone it", "driver": "d"},
        {"id": "d", "name": "", "driver": "d", "timeout": 90.0},
        {"id": "third", "name": "", "driver": "e"},
    ]
    assert written["finally"] == [{"id": "e", "name": "", "driver": "e"}]
    assert (written["revision"], written["runid"], written["metadata"]) == (1, "", {"a": 1})
    waits = "driver {} has never registered; step {} will wait for it"
    assert written["warnings"] == [waits.format(*it) for it in (("e", "third"), ("e", "e"))]
    await world.register("e", "app")
    again = await world.post("/pipelines", document)
    assert (again["revision"], "warnings" in again) == (1, False)
    assert (await world.post("/pipelines", {**document, "description": "new"}))["revision"] == 2
    assert (await world.get("/resources/pipeline/p/1"))["spec"]["description"] == ""
    assert (await world.get("/pipelines/p"))["description"] == "new"
    shown = await world.get("/pipelines/p")
    answer = await world.http.put("/pipelines/p", json=shown)
    assert (answer.status_code, answer.json()["revision"]) == (200, 2)
    assert (await world.http.put("/pipelines/q", json={**document, "name": "q"})).status_code == 404

    spec = {"resource": "app", "steps": [{"driver": "d"}]}
    through = await world.post("/resources", {"resource": "pipeline", "name": "q", "spec": spec})
    assert through["runid"] == ""
    assert "finally" not in await world.get("/pipelines/q")
    assert [it["name"] for it in (await world.get("/pipelines"))["items"]] == ["p", "q"]
    assert [it["name"] for it in (await world.get("/pipelines?limit=1"))["items"]] == ["p"]
    assert [it["name"] for it in (await world.get("/pipelines?cursor=p"))["items"]] == ["q"]
    run = await world.get(f"/runs/{await world.create('a', pipeline='q')}")
    assert (run["pipeline"], [step["id"] for step in run["steps"]]) == ("q", ["d"])
    assert (await world.http.delete("/resources/app/a")).status_code == 202
    assert (await world.http.delete("/pipelines/q")).status_code == 204
    await world.get("/pipelines/q", 404)
    await world.get("/pipelines/app", 404)


async def test_what_is_in_use_is_not_deleted(world: World) -> None:
    await world.post("/pipelines", {"name": "p", "resource": "app", "steps": STEPS})
    await world.define(pipeline="p")
    for name in ("a", "b", "c"):
        await world.create(name, pipeline="p" if name != "c" else None)
    for path in ("/pipelines/p", "/resources/pipeline/p", "/pipelines/p?force=true"):
        answer = await world.http.delete(path)
        assert answer.status_code == 409
        said = "pipeline p is used by definition app, app/a, app/b; give them another pipeline, or delete them first"
        assert answer.json()["detail"] == said
    await world.create("d")
    answer = await world.http.delete("/resource-definitions/app")
    assert answer.status_code == 409
    assert answer.json()["detail"] == "definition app is used by app/a, app/b, app/c and others; delete them first"
    for name in ("a", "b", "c", "d"):
        assert (await world.http.delete(f"/resources/app/{name}")).status_code == 202
    assert (await world.http.delete("/resource-definitions/app")).status_code == 204
    assert (await world.http.delete("/pipelines/p")).status_code == 204


async def test_a_priority_is_kept_shown_and_pinned_by_runs(world: World) -> None:
    document = {"name": "a", "resource": "app", "spec": {"x": 1}, "priority": 7}
    run_id = (await world.post("/resources", document))["runid"]
    assert (await world.get(f"/runs/{run_id}"))["priority"] == 7
    await world.run_steps(run_id)
    answer = await world.http.put("/resources/app/a", json={**document, "priority": 2})
    assert (answer.json()["priority"], answer.json()["runid"]) == (2, ""), "it makes a revision, but no run"
    again = await world.http.post(f"/runs/{run_id}/rerun")
    assert again.json()["priority"] == 2
    answer = await world.http.put("/resources/app/a", json={"spec": {"x": 2}})
    assert answer.json()["priority"] == 0


@pytest.mark.parametrize("priority", [-1, 10, 1.5, "5", True, None])
async def test_a_priority_is_a_whole_number_from_0_to_9(world: World, priority: object) -> None:
    document = {"name": "a", "resource": "app", "spec": {}, "priority": priority}
    answer = await world.http.post("/resources", json=document)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["pointer"] == "/priority"
