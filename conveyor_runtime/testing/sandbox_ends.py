"""Timeout, cancel and takeover end everything an exec started, down to the last daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from conveyor_runtime.orchestra import ExecTag, Sandbox
from conveyor_runtime.testing.place import Place, Said, run, unique, until

TREES: dict[str, Callable[[str], str]] = {
    "one": lambda n: f"echo up; exec sleep {n}",
    "children": lambda n: f"sleep {n} & sleep {n} & echo up; wait",
    "pipeline": lambda n: f"echo up; sleep {n} | sleep {n}",
    "deaf": lambda n: f"trap '' TERM; echo up; sleep {n}; sleep {n}; sleep {n}",
    "own session": lambda n: f"setsid sleep {n} & echo up; wait; sleep {n}",
    "daemon": lambda n: (
        f"(setsid sh -c '(sleep {n} &) ; sleep {n}' > /dev/null 2>&1 &) ; sleep 0.2; echo up; sleep {n}"
    ),
    "deaf daemon": lambda n: (
        f"(setsid sh -c \"trap '' TERM; (sleep {n} &) ; sleep {n}\" > /dev/null 2>&1 &) ; sleep 0.2; echo up; sleep {n}"
    ),
    "empty environment": lambda n: f"env -i setsid sleep {n} & echo up; wait",
}


@pytest.mark.parametrize("tree", TREES)
async def test_timeout_ends_the_tree(place: Place, sandbox: Sandbox, tree: str) -> None:
    number = unique()
    async with asyncio.timeout(20):
        status, said = await run(sandbox, TREES[tree](number), timeout=1.0, grace=0.3)
    assert (status.status, said.stdout) == ("timeout", b"up\n")
    assert not await place.sleeping(number)


@pytest.mark.parametrize("tree", TREES)
async def test_cancel_ends_the_tree(place: Place, sandbox: Sandbox, tree: str) -> None:
    number = unique()
    said = Said()
    running = asyncio.create_task(run(sandbox, TREES[tree](number), said=said, grace=0.3))
    await said.until(b"up")
    await until(lambda: place.sleeping(number))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(20):
            await running
    assert not await place.sleeping(number)


async def test_cancel_again_and_again_still_ends_it(place: Place, sandbox: Sandbox) -> None:
    number = unique()
    said = Said()
    running = asyncio.create_task(run(sandbox, TREES["deaf"](number), said=said, grace=0.5))
    await said.until(b"up")
    for _ in range(5):
        running.cancel()
        await asyncio.sleep(0.05)
    await asyncio.wait([running], timeout=20)
    assert running.cancelled()
    assert not await place.sleeping(number)


async def test_cancel_at_any_moment_of_the_start(place: Place, sandbox: Sandbox) -> None:
    number = unique()
    for moment in range(12):
        running = asyncio.create_task(run(sandbox, f"sleep {number}"))
        await asyncio.sleep(moment * 0.008)
        running.cancel()
        await asyncio.wait([running])
        assert not await place.sleeping(number)


async def test_a_build_may_use_its_grace(sandbox: Sandbox) -> None:
    script = "trap 'echo tidying; sleep 0.3; echo tidy; exit 3' TERM; echo up; while :; do sleep 0.05; done"
    status, said = await run(sandbox, script, timeout=0.7, grace=10)
    assert status.status == "timeout"
    assert said.stdout == b"up\ntidying\ntidy\n"
    assert status.seconds < 8


async def test_what_one_exec_left_is_not_touched_by_the_end_of_another(place: Place, sandbox: Sandbox) -> None:
    number = unique()
    await run(sandbox, f"sleep {number} > /dev/null 2>&1 &")
    await run(sandbox, "sleep 1000", timeout=0.3, grace=0.2)
    assert await place.sleeping(number) == 1


def tag(attempt: int, takeover: int, step: str = "build") -> ExecTag:
    return ExecTag("run", step, attempt, takeover)


async def test_end_execs_ends_earlier_ones_of_that_step_only(place: Place, sandbox: Sandbox) -> None:
    tags = {
        "first": tag(1, 0),
        "taken over": tag(1, 1),
        "second": tag(2, 0),
        "another step": tag(1, 0, "build-2"),
        "own": tag(2, 1),
        "later": tag(3, 0),
    }
    numbers = {name: unique() for name in tags}
    running = {name: asyncio.create_task(run(sandbox, TREES["daemon"](numbers[name]), tag=tags[name])) for name in tags}

    async def all_are_up() -> bool:
        return all([await place.sleeping(number) == 3 for number in numbers.values()])

    await until(all_are_up, 20)
    assert await sandbox.end_execs("build", (2, 1), grace=5) == 3
    left = {name for name, number in numbers.items() if await place.sleeping(number)}
    assert left == {"another step", "own", "later"}
    for name in ("first", "taken over", "second"):
        status, _ = await running.pop(name)
        assert status.status == "killed"
    assert await sandbox.end_execs("build", (2, 1), grace=5) == 0
    for name in running:
        running[name].cancel()
    await asyncio.wait(running.values())


async def test_end_execs_waits_for_those_that_do_not_listen(place: Place, sandbox: Sandbox) -> None:
    number = unique()
    said = Said()
    running = asyncio.create_task(run(sandbox, TREES["deaf daemon"](number), said=said))
    await said.until(b"up")
    assert await sandbox.end_execs("build", (1, 1), grace=0.4) == 1
    assert not await place.sleeping(number)
    await running


async def test_end_execs_finds_what_a_finished_exec_left(place: Place, sandbox: Sandbox) -> None:
    number = unique()
    await run(sandbox, f"(setsid sleep {number} > /dev/null 2>&1 &)")
    await until(lambda: place.sleeping(number))
    assert await sandbox.end_execs("build", (1, 1), grace=1) == 1
    assert not await place.sleeping(number)


async def test_an_earlier_exec_that_comes_late_does_not_begin(sandbox: Sandbox) -> None:
    assert await sandbox.end_execs("build", (2, 0)) == 0
    for late in (tag(1, 0), tag(1, 7)):
        status, said = await run(sandbox, "echo ran", tag=late)
        assert (status.status, said.stdout) == ("error", b"")
        assert said.stderr
    for current in (tag(2, 0), tag(2, 1), tag(10, 0), tag(1, 0, "build-2")):
        assert (await run(sandbox, "echo ran", tag=current))[1].stdout == b"ran\n"
