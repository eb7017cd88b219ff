"""What the end of a docker container counts as: decided once, and an error where its input was cut off."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from conveyor_runtime.orchestra.docker.starting import start_container
from conveyor_runtime.testing import Place
from tests.contract.conftest import until

pytestmark = pytest.mark.docker


async def test_a_mark_is_of_one_container_only(docker_place: Place, docker_engine: Any) -> None:
    container: Any = await docker_place.run("sleep 1000")
    await container.stop(0)
    assert (await container.status()).status == "cancelled"
    docker_engine.remove_container(container.id)  # and whoever did it died before the mark went, too
    assert (await (await docker_place.run("true")).wait()).status == "success"


async def test_a_stop_that_comes_after_the_end_was_seen_changes_nothing(
    docker_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = await docker_place.run("sleep 1")
    other: Any = await docker_place.open()
    same = await other.get(docker_place.ns(), "task")
    create, held, go = other._engine.api.create_volume, threading.Event(), threading.Event()

    def late(*args: Any, **options: Any) -> Any:
        held.set()
        go.wait(30)
        return create(*args, **options)

    monkeypatch.setattr(other._engine.api, "create_volume", late)
    stopping = asyncio.create_task(same.stop(1))
    await until(held.is_set)
    assert (await container.wait()).status == "success"
    go.set()
    await stopping
    third = await docker_place.open()
    for reader in (same, await third.get(docker_place.ns(), "task")):
        assert (await reader.status()).status == "success"


async def endless() -> AsyncIterator[bytes]:
    yield b"some"
    await asyncio.sleep(1000)


async def broken() -> AsyncIterator[bytes]:
    yield b"some"
    raise ValueError("the source broke")


async def test_a_source_that_breaks_is_no_end_of_input(docker_place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        status = await (await docker_place.run("cat; echo read it all", stdin=broken())).wait()
    assert (status.status, status.exit_code, status.reason) == ("error", 137, "input")
    assert "the source broke" in caplog.text


async def test_input_that_a_closed_backend_took_along_is_no_end_of_input(docker_place: Place) -> None:
    other = await docker_place.open()
    task = docker_place.sh("cat; echo read it all", stdin=endless())
    await other.run(docker_place.ns(), task, docker_place.owner())
    await other.close()
    status = await (await docker_place.backend.get(docker_place.ns(), "task")).wait()
    assert (status.status, status.exit_code, status.reason) == ("error", 137, "input")


async def test_input_whose_feeder_was_killed_is_no_end_of_input(
    docker_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor_runtime.orchestra.docker.ending._LATE", timedelta(seconds=0.5))
    backend: Any = await docker_place.open()
    task = docker_place.sh("cat", stdin=endless())
    feeding: Any
    _, feeding = await start_container(backend._engine, docker_place.ns(), task, docker_place.owner())
    feeding.cr_frame.f_locals["connection"].stop()  # as the kernel does for the dead
    feeding.close()
    status = await (await backend.get(docker_place.ns(), "task")).wait()
    assert (status.status, status.exit_code, status.reason) == ("error", 0, "input")


async def test_a_command_that_ends_before_its_input_does_is_a_success(docker_place: Place) -> None:
    container = await docker_place.run("echo done", stdin=endless())
    async with asyncio.timeout(4):  # less than is waited for a feeder that may have been killed
        assert (await container.wait()).status == "success"
    await container.cleanup()
    assert await docker_place.backend.namespaces(docker_place.installation) == []
