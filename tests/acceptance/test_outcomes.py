"""How a build can end: the exit code tells, the message says why, and nothing of it is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.world import INTERRUPT, World, build, eventually

#: A build that says when it is under way, and leaves a child and a grandchild for whoever ends it.
ENDLESS = "echo under way; (sleep 333 & sleep 333) & sleep 333"


@pytest.fixture(scope="module")
def docker_world(tmp_path_factory: pytest.TempPathFactory, busybox: str) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("world"), backend="docker")
    try:
        world.up("--backend", "docker")
        yield world
    finally:
        world.close()
    world.check_ended()


@pytest.fixture(params=["native", pytest.param("docker", marks=pytest.mark.docker)])
def place(request: pytest.FixtureRequest) -> tuple[World, dict[str, Any], Callable[[str], list[str]]]:
    """The world, what its builds' specs need, and what is left of a run."""
    if request.param == "native":
        world: World = request.getfixturevalue("world")
        return world, {}, lambda run_id: world.builds_left()
    engine = request.getfixturevalue("docker_engine")
    world = request.getfixturevalue("docker_world")

    def left(run_id: str) -> list[str]:
        containers = [name for it in engine.containers(all=True) for name in it["Names"]]
        volumes = [it["Name"] for it in engine.volumes()["Volumes"] or []]
        return [name for name in containers + volumes if run_id in name] + world.builds_left()

    return world, {"image": request.getfixturevalue("busybox")}, left


def _run_id(out: str) -> str:
    return out.rpartition("\nrun ")[2].partition(":")[0]


def test_a_build_that_succeeds_shows_all_four_steps(place: Any, repository: str) -> None:
    world, spec, left = place
    resource = build(
        repository, "cat README", 'sh greet.sh "$WHO"; echo oops >&2', name="good", env={"WHO": "you"}, **spec
    )
    done = world.run("run", "-f", world.file("good.json", resource), "--watch")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "[build] hello from the repository" in lines
    assert "[build] greetings, you" in lines
    assert "[build] oops" in lines
    assert [line.split()[0] for line in lines if line.startswith("[")] == sorted(
        (line.split()[0] for line in lines if line.startswith("[")),
        key=["[start]", "[clone]", "[build]", "[stop]"].index,
    )
    table = [line.split()[:3] for line in lines if " Succeeded   " in line]
    assert table == [
        ["start", "container-start", "Succeeded"],
        ["clone", "git-cloner", "Succeeded"],
        ["build", "builder", "Succeeded"],
        ["stop", "container-stop", "Succeeded"],
    ]
    eventually(lambda: not left(_run_id(done.stdout)), 5.0, "nothing of the run is left")


def test_a_command_that_exits_7(place: Any, repository: str) -> None:
    world, spec, left = place
    resource = build(repository, "true", "echo before; exit 7", "echo never", name="seven", **spec)
    done = world.run("run", "-f", world.file("seven.json", resource), "--watch")
    assert done.returncode == 1, done.stderr
    assert "exit code 7: echo before; exit 7" in done.stdout
    assert "[build] before" in done.stdout
    assert "[build] never" not in done.stdout
    run = world.json("get", "run", _run_id(done.stdout))
    assert run["status"] == "Failed"
    assert "exit code 7" in run["reason"]
    assert {it["id"]: (it["status"], it["exit_code"]) for it in run["steps"]} == {
        "start": ("Succeeded", None),
        "clone": ("Succeeded", None),
        "build": ("Failed", 7),
        "stop": ("Succeeded", None),
    }
    eventually(lambda: not left(run["run_id"]), 5.0, "nothing of the run is left")


def test_a_cancelled_build(place: Any, repository: str) -> None:
    world, spec, left = place
    file = world.file("endless.json", build(repository, ENDLESS, name="cancelled", **spec))
    watcher = world.start("run", "-f", file, "--watch")
    watcher.until("[build] under way")
    assert "is being cancelled" in world.ok("cancel", "ci-build/cancelled", "--reason", "wrong branch")
    assert watcher.end() == 3
    run = world.get(f"/runs/{_run_id(watcher.out)}")
    assert run["status"] == "Cancelled"
    assert "wrong branch" in run["reason"]
    assert "wrong branch" in watcher.out
    assert [it["status"] for it in run["steps"]] == ["Succeeded", "Succeeded", "Cancelled", "Succeeded"]
    eventually(lambda: not left(run["run_id"]), 5.0, "nothing of the run is left")
    assert "is cancelled" in world.ok("cancel", run["run_id"]), "asking again changes nothing"


def test_a_build_beyond_its_timeout(place: Any, repository: str) -> None:
    world, spec, left = place
    resource = build(repository, ENDLESS, name="late", timeout="1s", **spec)
    done = world.run("run", "-f", world.file("late.json", resource), "--watch")
    assert done.returncode == 4, done.stderr
    assert "timeout" in done.stdout
    assert "under way; (sleep" in done.stdout.rpartition("STEP")[2]
    run = world.get(f"/runs/{_run_id(done.stdout)}")
    assert run["status"] == "TimedOut"
    eventually(lambda: not left(run["run_id"]), 5.0, "nothing of the run is left")


def test_a_repository_that_is_no_address(world: World, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    watchers = []
    for number, address in enumerate(
        ("--upload-pack=x", f"ext::sh -c touch% {trap}", "no address", "file:///etc/../nope")
    ):
        file = world.file(f"trap-{number}.json", build(address, "true", name=f"trap-{number}"))
        watchers.append(world.start("run", "-f", file, "--watch"))
    for watcher in watchers:
        assert watcher.end() == 1, watcher.out
        run = world.get(f"/runs/{_run_id(watcher.out)}")
        assert [it["status"] for it in run["steps"]][1:3] == ["Failed", "Skipped"], run
        assert [it["attempt"] for it in run["steps"]][1] == 1, "tried again though it cannot help"
    assert not trap.exists()
    eventually(lambda: not world.builds_left(), 5.0)


def test_ctrl_c_leaves_the_run_alone(world: World, repository: str) -> None:
    gate = world.folder / "gate"
    file = world.file(
        "detached.json", build(repository, f"echo under way; until [ -e {gate} ]; do sleep 0.1; done", name="detached")
    )
    watcher = world.start("run", "-f", file, "--watch")
    watcher.until("[build] under way")
    watcher.signal(INTERRUPT)
    assert watcher.end() == 130
    run_id = world.json("get", "ci-build", "detached")["active_run"]
    assert f" logs -f {run_id}" in watcher.err
    assert f" cancel {run_id}" in watcher.err
    assert "Traceback" not in watcher.err
    follower = world.start("logs", "-f", "ci-build/detached")
    follower.until("[build] under way")
    gate.touch()
    assert follower.end() == 0
    assert world.ended(run_id)["status"] == "Succeeded"
    assert world.ok("logs", run_id) == follower.out


def test_the_same_file_again_makes_no_run(world: World, repository: str) -> None:
    resource = build(repository, "echo once", name="once")
    file = world.file("once.json", resource)
    assert world.run("run", "-f", file, "--watch").returncode == 0
    again = world.run("run", "-f", file)
    assert again.returncode == 0
    assert "no new run was needed" in again.stderr
    assert " rerun " in again.stderr
    assert len(world.json("get", "runs", "--name", "once")) == 1
    watched = world.run("run", "-f", file, "--watch")
    assert watched.returncode == 0
    assert "[build] once" in watched.stdout
    resource["spec"]["timeout"] = 900
    world.file("once.json", resource)
    assert world.run("run", "-f", file, "--watch").returncode == 0
    assert [it["event"] for it in world.get("/runs?name=once")["items"]] == ["update", "create"]
