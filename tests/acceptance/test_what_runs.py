"""When what runs: work waits for drivers, changes make runs, the rest makes none, a delete is last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.world import Process, World, build, eventually

#: Drivers as a user would write them: one works until a file lets it go, one tidies up, one hears everything.
DRIVERS = """
import asyncio
from pathlib import Path

from conveyor_runtime.models import DriverResult, Resource
from conveyor_runtime.reconcile import Driver


async def work(payload: Resource, event, run_id, logger):
    logger.info(f"{event} {payload.spec.get('value')}")
    gate = payload.spec.get("gate")
    while gate and not Path(gate).exists():
        await asyncio.sleep(0.02)
    return DriverResult(success=True, message=event)


async def tidy(payload: Resource, event, run_id, logger):
    logger.info(f"tidied after {event}")


async def hear(payload: Resource, event, run_id, logger):
    with open(payload.spec["heard"], "a") as file:
        file.write(event + "\\n")


async def refuse(payload: Resource, event, run_id, logger):
    if event != "delete":
        return None
    logger.info("asked to let go")
    gate = Path(payload.spec["gate"])
    while payload.spec.get("waits") and not gate.exists():
        await asyncio.sleep(0.02)
    return DriverResult(success=gate.exists(), message="not yet" if not gate.exists() else "so be it")


worker = Driver("worker", ("thing",), work, direct=False)
tidier = Driver("tidier", ("thing",), tidy, direct=False)
refuser = Driver("refuser", ("treasure",), refuse, events="*")
listener = Driver("listener", ("thing",), hear, events="*")
"""

STEPS = [{"id": "first", "driver": "worker"}, {"id": "second", "driver": "worker"}]


@pytest.fixture(scope="module")
def things(empty_world: World) -> Iterator[World]:
    """A type `thing` with a pipeline of two steps and a finally step, and drivers for it."""
    world = empty_world
    world.file("my_drivers.py", DRIVERS)
    documents: list[Any] = [
        {"name": "thing", "schema": {"type": "object"}},
        {"name": "thing-line", "resource": "thing", "steps": STEPS, "finally": [{"id": "tidy", "driver": "tidier"}]},
    ]
    world.ok("apply", "-f", world.file("thing.json", documents))
    started: list[Process] = [world.driver("driver", "run", f"my_drivers.py:{name}") for name in ("worker", "tidier")]
    yield world
    for process in started:
        process.close()


def _thing(name: str, **spec: Any) -> dict[str, Any]:
    return {"resource": "thing", "name": name, "pipeline": "thing-line", "spec": spec}


def _put(world: World, thing: dict[str, Any]) -> str:
    response = world.request("PUT", f"/resources/thing/{thing['name']}", thing)
    assert response.status_code == 200, response.text
    return str(response.json()["runid"])


def _events(world: World, run_id: str) -> list[tuple[str, str]]:
    return [(it["step"], it["message"]) for it in map(_json, world.ok("logs", run_id, "-o", "json").splitlines())]


def _json(line: str) -> Any:
    return json.loads(line)


def test_work_waits_visibly_for_drivers(empty_world: World, repository: str) -> None:
    world = empty_world
    world.ok("apply", "-f", world.file("early.json", build(repository, "echo at last", name="early")))
    [run] = world.json("get", "runs", "--type", "ci-build", "--status", "pending")
    assert "waits for a driver named container-start: none has ever registered" in run["reason"]
    assert "container-start" in world.ok("get", "runs", "--type", "ci-build")
    assert "waits for a driver named container-start" in world.ok("describe", "run", run["run_id"])
    watcher = world.start("run", "-f", "early.json", "--watch")
    watcher.until("pending: ", 10.0)
    drivers = [world.driver(name) for name in ("container-start", "git-cloner", "builder", "container-stop")]
    assert watcher.end() == 0
    assert "[build] at last" in watcher.out
    names = world.ok("get", "drivers", "-o", "name").split()
    assert {"driver/builder", "driver/container-start"} <= set(names)
    for process in drivers:
        process.signal(15)
    assert [process.end() for process in drivers] == [0, 0, 0, 0]


def test_a_changed_spec_runs_with_event_update_in_every_step(things: World) -> None:
    world = things
    thing = _thing("changing", value=1)
    file = world.file("changing.json", thing)
    assert world.run("run", "-f", file, "--watch").returncode == 0
    thing["spec"]["value"] = 2
    run_id = _put(world, thing)
    assert world.ended(run_id)["status"] == "Succeeded"
    assert _events(world, run_id) == [("first", "update 2"), ("second", "update 2"), ("tidy", "tidied after update")]

    assert _put(world, thing) == "", "the same again"
    world.file("changing.json", thing)
    assert "unchanged" in world.ok("apply", "-f", file)
    assert world.json("apply", "-f", file)[0]["run"] == ""
    thing["metadata"] = {"owner": "me"}
    assert _put(world, thing) == "", "metadata only"
    metadata = world.json("get", "thing", "changing")["metadata"]
    assert (metadata["owner"], metadata["version"]) == ("me", "3")
    assert [it["event"] for it in world.get("/runs?name=changing")["items"]] == ["update", "create"]


def test_of_three_changes_the_second_is_superseded(things: World) -> None:
    world = things
    gate = world.folder / "gate-three"
    thing = _thing("quick", value=0, gate=str(gate))
    world.ok("apply", "-f", world.file("quick.json", thing))
    create = world.get("/resources/thing/quick")["active_run"]
    gate.touch()
    world.ended(create)
    gate.unlink()

    runs = []
    for value in (1, 2, 3):
        thing["spec"]["value"] = value
        runs.append(_put(world, thing))
    superseded = world.ended(runs[1])
    assert (superseded["status"], superseded["reason"]) == ("Cancelled", f"superseded by {runs[2]}")
    assert {it["status"] for it in superseded["steps"]} <= {"Skipped", "Cancelled"}
    waiting = world.get("/resources/thing/quick")
    assert (waiting["active_run"], [it["run_id"] for it in waiting["queue"]]) == (runs[0], [runs[2]])
    gate.touch()
    first, third = world.ended(runs[0]), world.ended(runs[2])
    assert (first["status"], third["status"]) == ("Succeeded", "Succeeded")
    assert third["started_at"] >= first["finished_at"]
    assert _events(world, runs[2])[0] == ("first", "update 3")


def test_a_rerun_does_it_once_more(things: World) -> None:
    world = things
    file = world.file("twice.json", _thing("twice", value=1))
    assert world.run("run", "-f", file, "--watch").returncode == 0
    again = world.run("rerun", "thing/twice", "--watch")
    assert (again.returncode, again.stdout.count("create 1")) == (0, 2)
    runs = world.json("get", "runs", "--name", "twice")
    assert [(it["event"], it["status"]) for it in runs] == [("create", "Succeeded")] * 2
    assert runs[0]["run_id"] in again.stderr
    gone = world.run("rerun", "nothing")
    assert (gone.returncode, gone.stderr) == (1, "error: there is no run nothing\n")


def test_a_delete_during_a_run_cancels_it_and_is_last(things: World) -> None:
    world = things
    listener = world.driver("driver", "run", "my_drivers.py:listener")
    heard = world.folder / "heard"
    thing = _thing("doomed", value=1, gate=str(world.folder / "never"), heard=str(heard))
    file = world.file("doomed.json", thing)
    watcher = world.start("run", "-f", file, "--watch")
    watcher.until("[first]")
    assert world.ok("delete", "thing", "doomed", "--wait") == "thing/doomed deleted\n"
    assert watcher.end() == 3
    run_id = watcher.out.rpartition("\nrun ")[2].partition(":")[0]
    run = world.get(f"/runs/{run_id}")
    assert run["status"] == "Cancelled"
    assert [(it["id"], it["status"]) for it in run["steps"]] == [
        ("first", "Cancelled"),
        ("second", "Skipped"),
        ("tidy", "Succeeded"),
    ]
    assert heard.read_text() == "delete\n"
    gone = world.run("get", "thing", "doomed")
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr == "error: there is no thing named doomed\n"
    again = world.run("delete", "-f", file)
    assert again.returncode == 1
    listener.signal(15)
    assert listener.end() == 0


def test_a_pipeline_posted_as_a_resource_works_and_keeps_its_versions(things: World) -> None:
    world = things
    pipeline = {"resource": "pipeline", "name": "as-resource", "spec": {"resource": "thing", "steps": STEPS[:1]}}
    world.ok("apply", "-f", world.file("as-resource.json", pipeline))
    thing = {**_thing("on-resource", value=1), "pipeline": "as-resource"}
    done = world.run("run", "-f", world.file("on-resource.json", thing), "--watch")
    assert done.returncode == 0, done.stderr
    assert "[first] create 1" in done.stdout
    pipeline["spec"] = {"resource": "thing", "steps": STEPS}
    world.ok("apply", "-f", world.file("as-resource.json", pipeline))
    first = world.get("/resources/pipeline/as-resource/1")
    assert [it["id"] for it in first["spec"]["steps"]] == ["first"]
    assert [it["id"] for it in world.json("get", "pipeline", "as-resource")["steps"]] == ["first", "second"]
    assert "as-resource" in world.ok("get", "pipelines")
    assert [it["event"] for it in world.get("/runs?name=on-resource")["items"]] == ["create"]


def test_a_driver_that_cannot_be_loaded_says_where(empty_world: World, tmp_path: Path) -> None:
    world = empty_world
    url = world.addresses["nats"]
    missing = world.run("driver", "run", "no_such_module:driver", "--nats-url", url)
    assert missing.returncode == 2
    assert "no module no_such_module" in missing.stderr
    world.file("broken.py", "x = 1\nraise RuntimeError('so it is')\n")
    broken = world.run("driver", "run", "broken.py:driver", "--nats-url", url)
    assert broken.returncode == 2
    assert "broken.py:2: it cannot be imported: RuntimeError: so it is" in broken.stderr
    assert "Traceback" not in broken.stderr
    without = world.run("builder", CONVEYOR_NATS_URL="")
    assert without.returncode == 2
    assert "--nats-url" in without.stderr


def test_how_a_delete_ended_is_told_by_the_exit_code(empty_world: World) -> None:
    world = empty_world
    gate = world.folder / "let-go"
    world.file("my_drivers.py", DRIVERS)
    world.ok("apply", "-f", world.file("treasure.json", {"name": "treasure", "schema": {"type": "object"}}))
    refuser = world.driver("driver", "run", "my_drivers.py:refuser")
    gold = {"resource": "treasure", "name": "gold", "spec": {"gate": str(gate)}}
    ring = {"resource": "treasure", "name": "ring", "spec": {"gate": str(gate), "waits": True}}
    world.ok("apply", "-f", world.file("both.json", [gold, ring]))
    for name in ("gold", "ring"):
        [created] = world.get(f"/runs?name={name}")["items"]
        assert world.ended(created["run_id"])["status"] == "Succeeded"

    failed = world.run("delete", "treasure", "gold", "--wait")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("error: treasure/gold is not gone: its delete run ")
    assert failed.stderr.rstrip().endswith("delete it again")
    assert world.run("get", "treasure", "gold").returncode == 0

    waiting = world.start("delete", "treasure", "ring", "--wait")
    [run_id] = eventually(
        lambda: [it["run_id"] for it in world.get("/runs?name=ring")["items"] if it["event"] == "delete"]
    )
    world.start("logs", "-f", run_id).until("asked to let go")
    world.ok("cancel", run_id)
    assert waiting.end() == 3
    assert "is Cancelled" in waiting.err

    gate.touch()
    assert world.ok("delete", "treasure", "gold", "--wait") == "treasure/gold deleted\n"
    assert world.ok("delete", "treasure", "ring", "--wait") == "treasure/ring deleted\n"
    assert world.run("get", "treasure", "gold").returncode == 1
    refuser.signal(15)
    assert refuser.end() == 0
