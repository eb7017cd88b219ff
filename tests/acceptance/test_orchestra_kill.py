"""`kill -9` of the whole runtime while containers, native trees and a machine run: what ended is removed, what lives
goes on where it was."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conveyor_runtime.orchestra.native import NativeBackend
from conveyor_runtime.orchestra.qemu import QemuBackend
from tests.acceptance.world import Process, World, eventually
from tests.support.qemu import guest_image, qemu_processes

__all__ = ["guest_image"]

pytestmark = [pytest.mark.docker, pytest.mark.qemu]

GONE_WITHIN = 60.0  # seconds after the restart
DRIVERS = "container-start,git-cloner,builder,container-stop,container-run"
SMALL: dict[str, Any] = {"backend": "qemu", "image": "small", "mounts": [{"volume": "v", "path": "v"}]}
_WAITS = "echo begun; while [ ! -e go ]; do sleep 0.1; done; echo went on"


@pytest.fixture
def world(tmp_path: Path, docker_engine: Any, guest_image: Path) -> Iterator[World]:
    world = World(tmp_path, backend="docker,native,qemu")
    yield world
    world.close()
    asyncio.run(clear(world, docker_engine, guest_image))
    world.check_ended()


async def clear(world: World, engine: Any, images: Path) -> None:
    """End what a failed test has left, in whatever state the runtime is."""
    qemu_root = world.native_root.with_name(f"{world.native_root.name}-qemu")
    for backend, root in (
        (NativeBackend(world.native_root), world.native_root),
        (QemuBackend(qemu_root, images), qemu_root),
    ):
        for home in root.glob("cv-*"):
            await backend.close_namespace(home.name, grace=0)
        await backend.close()
    for it in engine.containers(all=True, filters={"label": ["conveyor.run"]}):
        if it["Labels"]["conveyor.run"] in world.runs:
            engine.remove_container(it["Id"], force=True, v=True)
    for it in engine.volumes(filters={"label": ["conveyor.run"]})["Volumes"] or []:
        if it["Labels"]["conveyor.run"] in world.runs:
            engine.remove_volume(it["Name"], force=True)


class Places:
    """What there is of one installation in Docker, as processes and as machines."""

    def __init__(self, world: World, engine: Any) -> None:
        self._world = world
        self._engine = engine
        self._qemu_root = world.native_root.with_name(f"{world.native_root.name}-qemu")

    def containers(self, run_id: str) -> dict[str, str]:
        """Docker's ids of a run's containers, with when each was started."""
        found = self._engine.containers(all=True, filters={"label": [f"conveyor.run={run_id}"]})
        return {it["Id"]: self._engine.inspect_container(it["Id"])["State"]["StartedAt"] for it in found}

    def homes(self, run_id: str) -> list[str]:
        """The native directories of a run, and the machines."""
        return [str(it) for root in (self._world.native_root, self._qemu_root) for it in root.glob(f"cv-*{run_id}*")]

    def machines(self) -> list[str]:
        """Living ones."""
        return qemu_processes(self._qemu_root)

    def left(self, run_ids: Iterable[str]) -> list[str]:
        """All that is left of runs."""
        wanted, labelled = set(run_ids), {"label": ["conveyor.run"]}
        containers = {it["Id"]: it for it in self._engine.containers(all=True, filters=labelled)}
        volumes = {it["Name"]: it for it in self._engine.volumes(filters=labelled)["Volumes"] or []}
        found = [name for name, it in (containers | volumes).items() if it["Labels"]["conveyor.run"] in wanted]
        return found + [home for run_id in wanted for home in self.homes(run_id)]

    def are_empty(self, run_ids: Iterable[str]) -> bool:
        """Whether nothing is; at a pace that leaves the engine time for others."""
        left = self.left(run_ids)
        if left:
            time.sleep(0.5)
        return not left


def begin(world: World, name: str, resource: str, **spec: Any) -> str:
    """Apply a resource; its run."""
    answer = world.request("POST", "/resources/", {"name": name, "resource": resource, "spec": spec})
    assert answer.is_success, answer.text
    run_id = str(answer.json()["runid"])
    world.runs.add(run_id)
    return run_id


def stop_drivers(up: Process) -> list[int]:
    """Halt what `up` has started but its bus; their pids. They do nothing any more, and are not missed yet."""
    children = Path(f"/proc/{up.pid}/task/{up.pid}/children").read_text().split()
    drivers = [int(pid) for pid in children if b"nats-server" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for pid in drivers:
        os.kill(pid, signal.SIGSTOP)
    return drivers


def kill(up: Process, drivers: list[int]) -> None:
    """All of them at once."""
    for pid in (up.pid, *drivers):
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    assert up.ended(20.0)
    assert time.monotonic() - killed < 20.0, "what goes on holds on to its output"


def release(world: World, places: Places, engine: Any, living: dict[str, str]) -> None:
    """Tell those that wait that they may go on, without the runtime."""
    for name in ("task", "build"):
        [container] = places.containers(living[name])
        engine.exec_start(engine.exec_create(container, ["touch", "/workspace/go"])["Id"])
    for home in map(Path, places.homes(living["tree"])):
        for workspace in home.glob("*/workspace"):
            (workspace / "go").touch()
    for home in map(Path, places.homes(living["machine"])):
        (home / "vm/share/volumes/v/go").touch()


def said(world: World, run_id: str) -> str:
    """All that a run's command has written."""
    return "".join(f"{line['message']}\n" for line in world.get(f"/logs?runid={run_id}"))


def has_begun(world: World, run_id: str) -> bool:
    """Whether its command runs."""
    return "begun" in said(world, run_id)


def test_kill_9_of_everything(world: World, docker_engine: Any, busybox: str, repository: str) -> None:
    options = ("--drivers", DRIVERS, "--concurrency", "20", "--allow-file-repositories")
    up, places = world.up(*options), Places(world, docker_engine)

    def task(name: str, script: str, **spec: Any) -> str:
        return begin(world, name, "task", command=["sh", "-c", script], **{"image": busybox, **spec})

    service = task("service", "echo serving; sleep 100000", restart="always")
    tree = "(setsid sleep 100001 &); sleep 100001 & echo begun; sleep 100001"
    doomed = [task(f"doomed-{n}", "echo begun; sleep 100000") for n in range(7)]
    doomed += [task(f"tree-{n}", tree, backend="native") for n in range(2)]
    living = {
        "task": task("task", _WAITS),
        "build": begin(world, "build", "ci-build", repository=repository, image=busybox, commands=[_WAITS]),
        "tree": begin(world, "tree", "ci-build", repository=repository, backend="native", commands=[_WAITS]),
        "machine": task("machine", _WAITS.replace(" go ", " v/go "), **SMALL),
    }
    world.ended(service)
    for run_id in (*doomed, *living.values()):
        eventually(partial(has_begun, world, run_id), 60.0, f"{run_id} has begun")
    before = {run_id: places.containers(run_id) for run_id in (service, *living.values())}
    machines = places.machines()
    assert (sum(map(len, before.values())), len(machines)) == (3, 1)

    # They are cancelled while no driver can act on it any more: whoever is up next finds ended runs that still run.
    drivers = stop_drivers(up)
    for run_id in doomed:
        assert world.request("POST", f"/runs/{run_id}/cancel", {}).is_success
    assert len(places.left(doomed)) >= 9
    kill(up, drivers)
    assert len(places.left(doomed)) >= 9, "nobody is there to remove them"

    world.up(*options)
    restarted = time.monotonic()
    assert {run_id: places.containers(run_id) for run_id in before} == before
    release(world, places, docker_engine, living)
    for name, run_id in living.items():
        assert world.ended(run_id)["status"] == "Succeeded", name
        assert "went on" in said(world, run_id)
    ended = [*doomed, *living.values()]
    eventually(lambda: places.are_empty(ended), GONE_WITHIN, "nothing of ended runs is left")
    assert time.monotonic() - restarted < GONE_WITHIN
    assert not places.machines()
    assert not world.builds_left()
    assert places.containers(service) == before[service], "attached to again, not restarted"
    assert world.request("DELETE", "/resources/task/service").is_success
    eventually(lambda: places.are_empty([service]), 30.0, "the service goes with its resource")
