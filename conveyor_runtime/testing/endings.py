"""Timeout, stop and cleanup end everything a container started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

import pytest

from conveyor_runtime.errors import Gone
from conveyor_runtime.orchestra import Mount, RestartPolicy
from conveyor_runtime.testing.place import Place, Said, logs, unique, until, wait

TREES: dict[str, Callable[[str], str]] = {
    "one": lambda n: f"echo up; exec sleep {n}",
    "children": lambda n: f"sleep {n} & sleep {n} & echo up; wait",
    "deaf": lambda n: f"trap '' TERM; echo up; sleep {n}; sleep {n}; sleep {n}",
    "own session": lambda n: f"setsid sleep {n} & echo up; wait; sleep {n}",
    "deaf daemon": lambda n: (
        f"(setsid sh -c \"trap '' TERM; (sleep {n} &) ; sleep {n}\" > /dev/null 2>&1 &) ; sleep 0.2; echo up; sleep {n}"
    ),
}


@pytest.mark.parametrize("tree", TREES)
async def test_timeout_ends_the_tree(place: Place, tree: str) -> None:
    number = unique()
    began = datetime.now(UTC)
    container = await place.run(TREES[tree](number), timeout=1.5, grace=0.3)
    status = await wait(container)
    assert status.status == "timeout"
    assert status.exit_code != 0
    assert status.finished_at is not None
    # A busy machine takes its time to start it, and that counts.
    assert 1.4 < (status.finished_at - began).total_seconds() < 20
    assert not await place.sleeping(number)
    assert (await logs(container)).stdout == b"up\n"
    assert await (await place.backend.get(place.ns(), "task")).status() == status


async def test_ended_in_time_is_no_timeout(place: Place) -> None:
    status, _ = await place.ended("exit 3", timeout=60)
    assert (status.status, status.exit_code) == ("error", 3)


@pytest.mark.parametrize("tree", TREES)
async def test_stop_ends_the_tree(place: Place, tree: str) -> None:
    number = unique()
    container = await place.run(TREES[tree](number))
    await until(lambda: place.sleeping(number), 20)
    async with asyncio.timeout(20):
        await container.stop(grace=0.3)
    assert not await place.sleeping(number)
    status = await container.status()
    assert (status.status, status.reason, status.done) == ("cancelled", None, True)
    assert await wait(container) == status
    assert await (await place.backend.get(place.ns(), "task")).status() == status


async def test_a_command_may_use_its_grace(place: Place) -> None:
    script = "trap 'echo tidying; sleep 0.3; echo tidy; exit 3' TERM; echo up; while :; do sleep 0.05; done"
    container = await place.run(script)
    said = Said()
    following = asyncio.create_task(container.logs(said))
    await said.until(b"up")
    async with asyncio.timeout(20):
        await container.stop(grace=15)
        await following
    assert said.stdout == b"up\ntidying\ntidy\n"
    status = await container.status()
    assert (status.status, status.exit_code) == ("cancelled", 3)


async def test_stop_after_the_end_changes_nothing(place: Place) -> None:
    container = await place.run("exit 5")
    status = await wait(container)
    again = await place.backend.get(place.ns(), "task")
    await again.stop()
    await container.stop()
    assert await again.status() == await container.status() == status


async def test_what_it_left_behind_ends_with_it(place: Place) -> None:
    number = unique()
    status, _ = await place.ended(f"setsid sleep {number} > /dev/null 2>&1 & sleep 0.2")
    assert status.status == "success"
    assert not await place.sleeping(number)


async def test_cleanup_of_one_that_runs(place: Place) -> None:
    number = unique()
    mounts = (Mount("kept", "kept"),)
    container = await place.run(f"echo x > kept/file; (setsid sleep {number} &); sleep {number}", mounts=mounts)
    await until(lambda: place.sleeping(number), 20)
    async with asyncio.timeout(20):
        await container.cleanup()
        await container.cleanup()
    assert not await place.sleeping(number)
    with pytest.raises(Gone):
        await place.backend.get(place.ns(), "task")
    _, said = await place.ended("cat kept/file", mounts=mounts)
    assert said.stdout == b"x\n"


async def test_removed_from_outside_is_an_error_and_gone(place: Place) -> None:
    container = await place.run("echo up; sleep 1000")
    waiting = asyncio.create_task(container.wait())
    await asyncio.sleep(0.1)
    await (await (await place.open()).get(place.ns(), "task")).cleanup()
    async with asyncio.timeout(20):
        status = await waiting
    # Who looks between its death and its removal sees that it was killed.
    assert (status.status, status.reason) in (("error", "gone"), ("killed", "signal"))
    assert await container.status() == status
    with pytest.raises(Gone):
        await container.logs(Said())
    await container.stop()
    await container.cleanup()
    assert await container.status() == status


async def test_removed_while_nobody_looked(place: Place) -> None:
    container = await place.run("sleep 1000")
    await (await (await place.open()).get(place.ns(), "task")).cleanup()
    status = await container.status()
    assert (status.status, status.reason, status.exit_code) == ("error", "gone", None)
    assert await container.wait() == status
    await container.stop()
    await container.cleanup()


async def test_restarted_until_it_has_failed_often_enough(place: Place) -> None:
    mounts = (Mount("shared", "shared"),)
    policy = RestartPolicy("on-failure", 2)
    container = await place.run("echo x; echo x >> shared/ran; exit 3", mounts=mounts, restart=policy)
    status = await wait(container)
    assert (status.status, status.exit_code, status.restarts) == ("error", 3, 2)
    assert (await logs(container)).stdout == b"x\n" * 3
    _, said = await place.ended("cat shared/ran", id="reader", mounts=mounts)
    assert said.stdout == b"x\n" * 3


async def test_restarted_until_it_succeeds(place: Place) -> None:
    mounts = (Mount("shared", "shared"),)
    script = 'echo x >> shared/ran; [ "$(wc -l < shared/ran)" -ge 2 ]'
    container = await place.run(script, mounts=mounts, restart=RestartPolicy("on-failure"))
    status = await wait(container)
    assert (status.status, status.exit_code, status.restarts) == ("success", 0, 1)


@pytest.mark.parametrize("policy", ["always", "unless-stopped"])
async def test_a_service_runs_until_it_is_stopped(place: Place, policy: Literal["always", "unless-stopped"]) -> None:
    container = await place.run("echo x; sleep 0.2", restart=RestartPolicy(policy))
    said = Said()
    following = asyncio.create_task(container.logs(said))
    await said.until(b"x\nx\n")
    assert not (await container.status()).done
    async with asyncio.timeout(20):
        await container.stop(grace=0.2)
        await following
    assert (await container.status()).status == "cancelled"
    count = said.stdout.count(b"x\n")
    await asyncio.sleep(0.5)
    assert (await logs(container)).stdout == b"x\n" * count
