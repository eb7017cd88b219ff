"""A resource of type `task`: run to its end, or kept as a service through kill -9, updates and its delete."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from tests.acceptance.world import World, eventually


def apply(world: World, name: str, **spec: Any) -> Any:
    """Apply a task and wait for its run; the run."""
    document = {"name": name, "resource": "task", "spec": spec}
    answer = world.request("POST", "/resources/", document)
    if answer.status_code == 409:
        answer = world.request("PUT", f"/resources/task/{name}", document)
    assert answer.is_success, answer.text
    return world.ended(answer.json()["runid"])


def services(world: World) -> list[dict[str, Any]]:
    """What the keepers wrote of services that have not ended."""
    running = [it for it in world.native_root.glob("cv-*-service-*/s-*/pid") if not it.with_name("exit").exists()]
    return [json.loads(it.read_text()) for it in running]


def test_a_task_runs_and_its_output_is_the_runs_log(world: World) -> None:
    run = apply(world, "hello", command=["sh", "-c", "echo from the task; exit 0"])
    assert run["status"] == "Succeeded"
    assert "from the task" in world.ok("logs", run["run_id"])
    assert apply(world, "bad", command=["sh", "-c", "exit 5"])["status"] == "Failed"


def test_a_service_outlives_kill_9_follows_its_update_and_goes_with_its_resource(own_world: World) -> None:
    world = own_world
    up = world.up("--drivers", "container-run")
    assert apply(world, "web", command=["sleep", "100000"], restart="always")["status"] == "Succeeded"
    (first,) = services(world)
    up.signal(signal.SIGKILL)
    assert up.ended(20.0)
    world.up("--drivers", "container-run")
    assert services(world) == [first]
    os.kill(first["pid"], 0)
    assert apply(world, "web", command=["sleep", "200000"], restart="always")["status"] == "Succeeded"
    (second,) = services(world)
    assert second["pid"] != first["pid"]
    assert world.request("DELETE", "/resources/task/web").is_success
    eventually(lambda: not services(world), 30.0, "the service goes with its resource")
