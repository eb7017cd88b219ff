"""What `up` gives its drivers, how it ends its server, and what it takes up again."""

from __future__ import annotations

import signal

from tests.acceptance.world import World, build

#: A driver of a package that is installed beside ours. It asks the API about the very run it works for.
ASKER = """
from conveyor_runtime.models import DriverResult, Resource
from conveyor_runtime.reconcile import Driver, RunContext


async def ask(payload: Resource, event, run_id, logger, context: RunContext):
    run = await context.client.get_run(run_id)
    return DriverResult(success=True, message=f"{run.status} {run.run_id == run_id}")


driver = Driver("asker", ("question",), ask)
"""


def test_a_driver_of_up_may_ask_the_api(own_world: World) -> None:
    world = own_world
    packages = world.folder / "packages"
    about = packages / "asker-1.0.dist-info"
    about.mkdir(parents=True)
    (packages / "asker.py").write_text(ASKER)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: asker\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[conveyor.drivers]\nasker = asker:driver\n")
    world.up("--drivers", "asker", "--token", "let-me-in", PYTHONPATH=str(packages))
    world.ok("apply", "-f", world.file("question.json", {"name": "question", "schema": {"type": "object"}}))
    file = world.file("why.json", {"resource": "question", "name": "why", "spec": {}})
    watched = world.run("run", "-f", file, "--watch")
    assert watched.returncode == 0, watched.stdout + watched.stderr
    [run] = world.json("get", "runs", "--name", "why")
    [step] = world.json("get", "run", run["run_id"])["steps"]
    assert step["message"] == "Running True"


def test_the_server_ends_in_order(own_world: World) -> None:
    up = own_world.up("--drivers", "none")
    up.signal(signal.SIGTERM)
    assert up.end() == 0
    log = (own_world.folder / "data/nats/nats-server.log").read_text()
    assert "Initiating JetStream Shutdown" in log
    assert "JetStream Shutdown" in log.partition("Initiating JetStream Shutdown")[2]
    assert log.rstrip().endswith("Server Exiting..")
    assert "killing it" not in up.err


def test_what_ran_when_it_ended_goes_on_when_it_is_up_again(own_world: World, repository: str) -> None:
    world = own_world
    gate = world.folder / "gate"
    up = world.up("--allow-file-repositories")
    command = f"echo under way; while [ ! -e {gate} ]; do sleep 0.05; done; echo through"
    world.ok("apply", "-f", world.file("long.json", build(repository, command, name="long")))
    [run] = world.get("/runs?name=long")["items"]
    follower = world.start("logs", "-f", run["run_id"])
    follower.until("[build] under way")
    follower.close()
    up.signal(signal.SIGTERM)
    up.until("once more to hurry")
    while not up.ended(0.5):
        up.signal(signal.SIGTERM)
    assert up.end() == 0
    gate.touch()
    world.up("--allow-file-repositories")
    ended = world.ended(run["run_id"])
    assert ended["status"] == "Succeeded", ended
    assert [(it["status"], it["attempt"]) for it in ended["steps"]] == [("Succeeded", 1)] * 4
    lines = world.ok("logs", run["run_id"])
    assert lines.count("through") == lines.count("echo through") + 1
    assert not world.builds_left()
