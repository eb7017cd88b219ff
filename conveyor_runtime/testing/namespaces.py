"""Namespaces: what is in one goes with it, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from conveyor_runtime.errors import Gone, TerminalError
from conveyor_runtime.orchestra import Mount, NamespaceInfo, reap
from conveyor_runtime.testing.place import Place, unique, until


async def test_close_removes_all_of_it_and_nothing_else(place: Place) -> None:
    number = unique()
    mounts = (Mount("data", "data"),)
    await place.run(f"echo x > data/f; (setsid sleep {number} &); sleep {number}", id="one", mounts=mounts)
    await place.ended("true", id="two", mounts=mounts)
    other = await place.run("echo kept > data/f; sleep 1000", run="run-2", mounts=mounts)
    await until(lambda: place.sleeping(number), 20)
    async with asyncio.timeout(30):
        await place.backend.close_namespace(place.ns(), grace=0.3)
        await place.backend.close_namespace(place.ns(), grace=0.3)
    assert not await place.sleeping(number)
    for task_id in ("one", "two"):
        with pytest.raises(Gone):
            await place.backend.get(place.ns(), task_id)
    assert [info.ns for info in await place.backend.namespaces(place.installation)] == [place.ns("run-2")]
    assert (await other.status()).status == "running"
    _, said = await place.ended("ls data", id="again", mounts=mounts)
    assert said.stdout == b""


async def test_close_of_nothing_is_fine(place: Place) -> None:
    await place.backend.close_namespace(place.ns())


async def test_of_one_installation_only(place: Place) -> None:
    other = f"{place.installation}x"
    await place.run("true", run="a")
    await place.run("true", run="b")
    await place.backend.run(place.ns("a", other), place.sh("true"), place.owner("a", other))
    found = await place.backend.namespaces(place.installation)
    assert [(info.ns, info.run_id) for info in found] == [(place.ns("a"), "a"), (place.ns("b"), "b")]
    assert found[0].owners == (place.owner("a"),)
    assert [info.ns for info in await place.backend.namespaces(other)] == [place.ns("a", other)]


async def test_janitor_reaps_the_dead_of_its_own_installation(place: Place) -> None:
    other = f"{place.installation}x"
    number = unique()
    for run in ("dead", "alive", "unknown"):
        await place.run(f"sleep {number if run == 'dead' else 1000}", run=run)
    foreign = await place.backend.run(place.ns("dead", other), place.sh("sleep 1000"), place.owner("dead", other))
    await until(lambda: place.sleeping(number), 20)

    async def is_dead(info: NamespaceInfo) -> bool:
        if info.run_id == "unknown":
            raise ConnectionError("the state cannot be read")
        return info.run_id == "dead"

    assert await reap(place.backend, place.installation, is_dead, grace=0.2) == [place.ns("dead")]
    assert not await place.sleeping(number)
    left = {info.run_id for info in await place.backend.namespaces(place.installation)}
    assert left == {"alive", "unknown"}
    assert (await foreign.status()).status == "running"


@pytest.mark.parametrize("task_id", ["../x", "", "a.b", "a/b", "-x", "x" * 64])
async def test_ids_that_lead_elsewhere_are_refused(place: Place, task_id: str) -> None:
    with pytest.raises(TerminalError):
        await place.backend.run(place.ns(), place.sh("true", id=task_id), place.owner())
    assert await place.backend.namespaces(place.installation) == []
