"""Starts in docker that are cancelled, or overtaken by whoever removes: nothing is left that nobody knows."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from conveyor_runtime.errors import Gone
from conveyor_runtime.orchestra import Container, Mount, RestartPolicy, Sandbox
from conveyor_runtime.orchestra.docker.starting import start_container
from conveyor_runtime.testing import Place
from tests.contract.conftest import until

pytestmark = pytest.mark.docker


async def begun(place: Place, backend: Any, kind: str) -> Container | Sandbox:
    if kind == "sandbox":
        sandbox: Sandbox = await backend.start_sandbox(place.ns(), place.task(), place.owner())
        return sandbox
    task = place.sh("sleep 1000", mounts=(Mount("data", "data"),))
    container: Container = await backend.run(place.ns(), task, place.owner())
    return container


def left(place: Place, engine: Any) -> list[str]:
    found = [item["Names"][0] for item in engine.containers(all=True, filters={"name": place.ns()})]
    return found + [item["Name"] for item in engine.volumes(filters={"name": place.ns()})["Volumes"] or ()]


@pytest.mark.parametrize("kind", ["sandbox", "container"])
async def test_a_cancelled_start_leaves_nothing_that_comes_later(
    docker_place: Place, docker_engine: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = await docker_place.open()
    create, held, go = backend._engine.api.create_container, threading.Event(), threading.Event()

    def late(*args: Any, **options: Any) -> Any:
        held.set()
        go.wait(30)
        return create(*args, **options)

    monkeypatch.setattr(backend._engine.api, "create_container", late)
    starting = asyncio.create_task(begun(docker_place, backend, kind))
    await until(held.is_set)
    starting.cancel()
    asyncio.get_running_loop().call_later(0.2, go.set)
    await asyncio.wait([starting])
    assert go.is_set()
    await backend.close_namespace(docker_place.ns(), grace=0)
    assert left(docker_place, docker_engine) == []


@pytest.mark.parametrize("kind", ["sandbox", "container"])
async def test_a_volume_that_the_engine_makes_again_is_known(
    docker_place: Place, docker_engine: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = await docker_place.open()
    create = backend._engine.api.create_container

    def overtaken(*args: Any, **options: Any) -> Any:
        volumes = docker_engine.volumes(filters={"name": docker_place.ns()})["Volumes"]
        assert volumes
        for volume in volumes:
            docker_engine.remove_volume(volume["Name"])
        return create(*args, **options)

    monkeypatch.setattr(backend._engine.api, "create_container", overtaken)
    thing = await begun(docker_place, backend, kind)
    docker_engine.remove_container(thing.id, force=True)
    assert [info.ns for info in await backend.namespaces(docker_place.installation)] == [docker_place.ns()]
    await backend.close_namespace(docker_place.ns(), grace=0)
    assert left(docker_place, docker_engine) == []


async def test_a_container_that_was_made_and_not_started_is_none_until_the_next_run(
    docker_place: Place, docker_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = await docker_place.open()

    def dies(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt  # passed by what tidies up after a refusal, as the end of the process is

    task = docker_place.sh("sleep 1000", restart=RestartPolicy("always"))
    with monkeypatch.context() as patched:
        patched.setattr(backend._engine.api, "start", dies)
        with pytest.raises(KeyboardInterrupt):
            await start_container(backend._engine, docker_place.ns(), task, docker_place.owner())
    with pytest.raises(Gone, match="not started"):
        await backend.get(docker_place.ns(), task.id)
    container = await backend.run(docker_place.ns(), task, docker_place.owner())
    assert docker_engine.inspect_container(container.id)["State"]["Running"]
    assert (await (await backend.get(docker_place.ns(), task.id)).status()).status == "running"


async def test_a_container_that_somebody_else_removes_meanwhile_is_closed(
    docker_place: Place, docker_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await docker_place.run("sleep 1000")
    backend: Any = await docker_place.open()
    inspect = backend._engine.api.inspect_container

    def overtaken(container: str) -> Any:
        docker_engine.remove_container(container, force=True)
        return inspect(container)

    monkeypatch.setattr(backend._engine.api, "inspect_container", overtaken)
    await backend.close_namespace(docker_place.ns(), grace=1)
    assert left(docker_place, docker_engine) == []
