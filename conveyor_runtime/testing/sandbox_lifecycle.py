"""Sandboxes come once, are found again, and go with their namespace and nothing else."""

from __future__ import annotations

import asyncio
import re

import pytest

from conveyor_runtime.errors import Gone, TerminalError
from conveyor_runtime.orchestra import Limits, NamespaceInfo, Sandbox, Task, namespace, reap
from conveyor_runtime.testing.place import TAG, Place, Said, SandboxBackend, run, unique, until


async def test_start_twice_is_the_same_sandbox(place: Place, backend: SandboxBackend) -> None:
    first = await backend.start_sandbox(place.ns(), place.task(), place.owner())
    await run(first, "echo kept > file")
    again = await (await place.open()).start_sandbox(place.ns(), place.task(), place.owner())
    assert again.id == first.id
    _, said = await run(again, "cat file")
    assert said.stdout == b"kept\n"


async def test_twenty_starts_at_once_make_one_sandbox(place: Place, backend: SandboxBackend) -> None:
    backends = [backend, *[await place.open() for _ in range(3)]]
    found = await asyncio.gather(
        *(backends[i % 4].start_sandbox(place.ns(), place.task(), place.owner()) for i in range(20))
    )
    assert len({sandbox.id for sandbox in found}) == 1
    outcomes = await asyncio.gather(*(run(sandbox, "echo x >> all") for sandbox in found))
    assert all(status.status == "success" for status, _ in outcomes)
    _, said = await run(found[0], "wc -l < all")
    assert said.stdout.strip() == b"20"


async def test_get_from_another_backend_object(place: Place, sandbox: Sandbox) -> None:
    found = await (await place.open()).get_sandbox(place.ns(), "sandbox")
    assert found.id == sandbox.id
    assert found.workspace == sandbox.workspace
    assert (await run(found, "true"))[0].status == "success"


async def test_environment_of_the_task_is_kept(place: Place, backend: SandboxBackend) -> None:
    await backend.start_sandbox(place.ns(), place.task(env={"GREETING": "a 'b' \"c\"\nd=e"}), place.owner())
    found = await (await place.open()).get_sandbox(place.ns(), "sandbox")
    _, said = await run(found, 'printf %s "$GREETING"')
    assert said.stdout == b"a 'b' \"c\"\nd=e"


async def test_what_was_never_started_is_gone(place: Place, backend: SandboxBackend) -> None:
    with pytest.raises(Gone):
        await backend.get_sandbox(place.ns(), "sandbox")


async def test_closed_is_gone(place: Place, backend: SandboxBackend, sandbox: Sandbox) -> None:
    await backend.close_namespace(place.ns())
    with pytest.raises(Gone):
        await backend.get_sandbox(place.ns(), "sandbox")
    with pytest.raises(Gone):
        await run(sandbox, "true")


async def test_close_twice_and_of_nothing(place: Place, backend: SandboxBackend, sandbox: Sandbox) -> None:
    await asyncio.gather(backend.close_namespace(place.ns()), backend.close_namespace(place.ns()))
    await backend.close_namespace(place.ns())
    await backend.close_namespace(place.ns("never"))
    assert await backend.namespaces(place.installation) == []


async def test_start_again_after_close_is_fresh(place: Place, backend: SandboxBackend, sandbox: Sandbox) -> None:
    await run(sandbox, "echo old > file")
    await backend.close_namespace(place.ns())
    fresh = await backend.start_sandbox(place.ns(), place.task(), place.owner())
    _, said = await run(fresh, "ls")
    assert said.stdout == b""


async def test_close_ends_what_runs(place: Place, backend: SandboxBackend, sandbox: Sandbox) -> None:
    number = unique()
    said = Said()
    script = f"(setsid sleep {number} &) ; echo up; sleep {number}"
    building = asyncio.create_task(run(sandbox, script, said=said))
    await said.until(b"up")

    async def both_are_up() -> bool:
        return await place.sleeping(number) == 2

    await until(both_are_up)
    await backend.close_namespace(place.ns(), grace=0.2)
    assert not await place.sleeping(number)
    try:
        status, _ = await building
    except Gone:
        return
    assert status.status == "killed"


async def test_cleanup_of_one_sandbox_leaves_the_others(place: Place, backend: SandboxBackend) -> None:
    number = unique()
    one = await backend.start_sandbox(place.ns(), place.task(id="one"), place.owner())
    two = await backend.start_sandbox(place.ns(), place.task(id="two"), place.owner())
    said = Said()
    building = asyncio.create_task(run(one, f"(setsid sleep {number} &); echo up; sleep {number}", said=said))
    await said.until(b"up")
    await run(two, "echo kept > file")
    await one.cleanup()
    await one.cleanup()
    assert not await place.sleeping(number)
    await asyncio.wait([building], timeout=20)
    building.exception()
    with pytest.raises(Gone):
        await backend.get_sandbox(place.ns(), "one")
    assert (await run(two, "cat file"))[1].stdout == b"kept\n"
    fresh = await backend.start_sandbox(place.ns(), place.task(id="one"), place.owner())
    assert (await run(fresh, "ls -A"))[1].stdout == b""


async def test_close_lets_a_build_tidy_up(place: Place, backend: SandboxBackend, sandbox: Sandbox) -> None:
    said = Said()
    script = "trap 'echo tidy; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    building = asyncio.create_task(run(sandbox, script, said=said))
    await said.until(b"up")
    await backend.close_namespace(place.ns(), grace=10)
    await asyncio.wait([building])
    building.exception()
    assert b"tidy" in said.stdout


async def test_names_that_begin_alike_are_different(place: Place, backend: SandboxBackend) -> None:
    one = await backend.start_sandbox(place.ns("t"), place.task(), place.owner("t"))
    two = await backend.start_sandbox(place.ns("t-2"), place.task(), place.owner("t-2"))
    three = await backend.start_sandbox(place.ns("t"), place.task(id="2-sandbox"), place.owner("t"))
    assert len({one.id, two.id, three.id}) == 3
    await run(one, "echo one > file")
    await backend.close_namespace(place.ns("t"))
    assert (await run(two, "test ! -e file"))[0].status == "success"
    with pytest.raises(Gone):
        await backend.get_sandbox(place.ns("t"), "sandbox")


async def test_namespaces_of_one_installation_only(place: Place, backend: SandboxBackend) -> None:
    other = f"{place.installation}x"
    await backend.start_sandbox(place.ns("a"), place.task(), place.owner("a"))
    await backend.start_sandbox(place.ns("b"), place.task(), place.owner("b"))
    await backend.start_sandbox(place.ns("a", other), place.task(), place.owner("a", other))
    found = await backend.namespaces(place.installation)
    assert [(info.ns, info.run_id) for info in found] == [(place.ns("a"), "a"), (place.ns("b"), "b")]
    assert found[0].owners == (place.owner("a"),)
    assert [info.ns for info in await backend.namespaces(other)] == [place.ns("a", other)]


async def test_janitor_reaps_the_dead_of_its_own_installation(place: Place, backend: SandboxBackend) -> None:
    other = f"{place.installation}x"
    number = unique()
    for run_id in ("dead", "alive", "unknown"):
        await backend.start_sandbox(place.ns(run_id), place.task(), place.owner(run_id))
    foreign = await backend.start_sandbox(place.ns("dead", other), place.task(), place.owner("dead", other))
    dead = await backend.get_sandbox(place.ns("dead"), "sandbox")
    await run(dead, f"sleep {number} > /dev/null 2>&1 &")
    await until(lambda: place.sleeping(number))

    async def is_dead(info: NamespaceInfo) -> bool:
        if info.run_id == "unknown":
            raise ConnectionError("the state cannot be read")
        return info.run_id == "dead"

    assert await reap(backend, place.installation, is_dead, grace=0.2) == [place.ns("dead")]
    assert not await place.sleeping(number)
    left = {info.run_id for info in await backend.namespaces(place.installation)}
    assert left == {"alive", "unknown"}
    assert (await run(foreign, "true"))[0].status == "success"


async def test_ids_that_lead_elsewhere_are_refused(place: Place, backend: SandboxBackend) -> None:
    for task_id in ("../x", ""):
        with pytest.raises(TerminalError):
            await backend.start_sandbox(place.ns(), place.task(id=task_id), place.owner())
    assert await backend.namespaces(place.installation) == []


async def test_one_id_is_a_container_or_a_sandbox(place: Place, backend: SandboxBackend) -> None:
    sandbox = await backend.start_sandbox(place.ns(), place.task(id="box"), place.owner())
    with pytest.raises(TerminalError):
        await backend.run(place.ns(), place.sh("true", id="box"), place.owner())
    with pytest.raises(Gone):
        await backend.get(place.ns(), "box")
    assert (await run(sandbox, "true"))[0].status == "success"
    container = await backend.run(place.ns(), place.sh("sleep 1000", id="task"), place.owner())
    with pytest.raises(TerminalError):
        await backend.start_sandbox(place.ns(), place.task(id="task"), place.owner())
    with pytest.raises(Gone):
        await backend.get_sandbox(place.ns(), "task")
    assert (await container.status()).status == "running"


def test_namespace_is_pure_and_tells_everything_apart() -> None:
    uuid = "019a8f3e-7c1b-7d2a-9c3e-1f2a3b4c5d6e"
    assert namespace("inst", uuid) == f"cv-inst-{uuid}"
    pairs = [("a", "b-c"), ("a-b", "c"), ("a_b", "c"), ("A", "b-c"), ("a", "B-C"), ("", ""), ("a", "x" * 200)]
    pairs += [("a", "x" * 201), ("../..", "é/ü"), ("a b", "c;d")]
    names = [namespace(*pair) for pair in pairs]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"cv-[a-z0-9_]+-[a-z0-9_-]+", name) and len(name) <= 132 for name in names)


def test_task_defaults_are_unlimited() -> None:
    assert Task("x").limits == Limits()
    assert TAG.attempt == 1
