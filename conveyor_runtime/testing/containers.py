"""Containers: started once, ended honestly, found again."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from conveyor_runtime.errors import Gone
from conveyor_runtime.orchestra import Mount
from conveyor_runtime.testing.place import Place, Said, logs, quiet, wait

HARD = ["a b", "it's", 'say "x"', ";", "$(id)", "`id`", "$HOME", "*", "\\", "-n", "", "new\nline", "ü€😀"]
SHARED = (Mount("shared", "shared"),)


async def test_says_and_succeeds(place: Place) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    container = await place.run("echo hello; echo oops >&2")
    status = await wait(container)
    assert (status.status, status.exit_code, status.reason, status.done) == ("success", 0, None, True)
    assert status.finished_at is not None
    assert before < status.started_at <= status.finished_at < datetime.now(UTC) + timedelta(seconds=5)
    assert await container.status() == status
    said = await logs(container)
    assert (said.stdout, said.stderr) == (b"hello\n", b"oops\n")


async def test_fails_with_its_exit_code_and_stays_so(place: Place) -> None:
    container = await place.run("exit 42")
    status = await wait(container)
    assert (status.status, status.exit_code, status.reason) == ("error", 42, None)
    again = await place.backend.get(place.ns(), "task")
    for _ in range(5):
        assert await container.status() == await again.status() == status
        await asyncio.sleep(0.02)


async def test_runs_meanwhile(place: Place) -> None:
    container = await place.run("read -r line; sleep 1000")
    status = await container.status()
    assert (status.status, status.exit_code, status.finished_at, status.done) == ("running", None, None, False)


async def test_run_again_is_the_same_container(place: Place) -> None:
    task = place.sh("echo hello; echo x >> shared/ran", mounts=SHARED)
    first = await place.start(task)
    status = await wait(first)
    again = await (await place.open()).run(place.ns(), task, place.owner())
    assert again.id == first.id
    assert await wait(again) == status
    assert (await logs(again)).stdout == (await logs(first)).stdout == b"hello\n"
    _, said = await place.ended("cat shared/ran", id="reader", mounts=SHARED)
    assert said.stdout == b"x\n"


async def test_twenty_runs_at_once_start_it_once(place: Place) -> None:
    task = place.sh("cat >> shared/ran; sleep 0.3", stdin=b"x\n", mounts=SHARED)
    await place.start(place.sh("true", id="first", mounts=SHARED))
    backends = [await place.open() for _ in range(4)]
    found = await asyncio.gather(*(backends[i % 4].run(place.ns(), task, place.owner()) for i in range(20)))
    assert len({container.id for container in found}) == 1
    statuses = await asyncio.gather(*(wait(container) for container in found))
    assert {status.status for status in statuses} == {"success"}
    _, said = await place.ended("cat shared/ran", id="reader", mounts=SHARED)
    assert said.stdout == b"x\n"


async def test_found_again_by_another_backend_object(place: Place) -> None:
    container = await place.run("echo early; while [ ! -e shared/go ]; do sleep 0.05; done; echo late", mounts=SHARED)
    found = await (await place.open()).get(place.ns(), "task")
    assert found.id == container.id
    assert (await found.status()).status == "running"
    await place.run("echo > shared/go", id="other", mounts=SHARED)
    assert (await wait(found)).status == "success"
    assert (await logs(found)).stdout == b"early\nlate\n"


async def test_what_was_never_started_is_gone(place: Place) -> None:
    with pytest.raises(Gone):
        await place.backend.get(place.ns(), "task")
    await place.run("true")
    for ns, task_id in ((place.ns(), "tas"), (place.ns(), "task-2"), (place.ns("another"), "task")):
        with pytest.raises(Gone):
            await place.backend.get(ns, task_id)


async def test_ids_that_begin_alike_are_different(place: Place) -> None:
    one = await place.run("echo one", id="t")
    two = await place.run("echo two", id="t-2")
    three = await place.run("echo three", id="t", run="run-2")
    assert len({one.id, two.id, three.id}) == 3
    assert [(await logs(it)).stdout for it in (one, two, three)] == [b"one\n", b"two\n", b"three\n"]


async def test_arguments_stay_as_they_are(place: Place) -> None:
    task = place.sh("")
    container = await place.start(type(task)(id="words", image=place.image, command=("printf", "[%s]", *HARD)))
    assert (await wait(container)).status == "success"
    assert (await logs(container)).stdout.decode() == "".join(f"[{word}]" for word in HARD)


async def test_environment_is_the_tasks_own(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKERS_SECRET", "x")
    values = {"HELLO": "WORLD", "HARD": "two words\nand 'quotes' \"x\" $(id) = end", "EMPTY": ""}
    script = 'env | grep -c WORKERS_SECRET; printf "%s|%s|%s" "$HELLO" "$HARD" "${EMPTY-unset}"'
    status, said = await place.ended(script, env=values)
    assert status.status == "success"
    assert said.stdout.decode() == f"0\nWORLD|{values['HARD']}|"


async def test_a_directory_of_its_own_to_work_in(place: Place) -> None:
    await wait(await place.run("echo mine > file", id="one"))
    status, said = await place.ended("echo x > other && ls", id="two")
    assert (status.status, said.stdout) == ("success", b"other\n")


async def test_killed_by_a_signal_is_no_success(place: Place) -> None:
    for name, number in (("KILL", 9), ("TERM", 15), ("SEGV", 11)):
        status, _ = await place.ended(f"kill -{name} $$", id=f"by-{name}")
        assert (status.status, status.exit_code, status.reason) == ("killed", 128 + number, "signal")


async def test_a_command_that_is_not_there(place: Place) -> None:
    task = place.sh("")
    for name, code, command in (("gone", 127, "/no/such/program"), ("file", 126, "/etc/passwd")):
        container = await place.start(type(task)(id=name, image=place.image, command=(command,)))
        status = await wait(container)
        assert (status.status, status.exit_code) == ("error", code)
        assert command.encode() in (await logs(container)).stderr


@pytest.mark.parametrize("size", [0, 5, 1 << 20, 16 << 20])
async def test_stdin_arrives(place: Place, size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    status, said = await place.ended("sha256sum", stdin=data[:size])
    assert status.status == "success"
    assert said.stdout.split()[0].decode() == hashlib.sha256(data[:size]).hexdigest()


async def test_stdin_in_pieces(place: Place) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            await asyncio.sleep(0.01)
            yield b"%d\n" % number

    _, said = await place.ended("cat < /dev/stdin", stdin=pieces())
    assert said.stdout == b"0\n1\n2\n"


async def test_stdin_that_nobody_reads(place: Place) -> None:
    status, said = await place.ended("echo done", stdin=bytes(4 << 20))
    assert (status.status, said.stdout) == ("success", b"done\n")


async def test_waiting_for_it(place: Place) -> None:
    container = await place.run("while [ ! -e shared/go ]; do sleep 0.05; done; exit 3", mounts=SHARED)
    waiting = [asyncio.create_task(container.wait()) for _ in range(5)]
    given_up = asyncio.create_task(container.wait())
    await asyncio.sleep(0.1)
    given_up.cancel()
    await asyncio.wait([given_up])
    assert given_up.cancelled()
    assert (await container.status()).status == "running"
    await place.run("echo > shared/go", id="other", mounts=SHARED)
    async with asyncio.timeout(20):
        assert {(await one).exit_code for one in waiting} == {3}


async def test_backends_close_twice_and_containers_go_on(place: Place) -> None:
    other = await place.open()
    container = await other.run(place.ns(), place.sh("sleep 1000"), place.owner())
    await other.close()
    await other.close()
    found = await place.backend.get(place.ns(), "task")
    assert (found.id, (await found.status()).status) == (container.id, "running")


async def test_prepared_closes_twice(place: Place) -> None:
    prepared = await place.backend.prepare(place.sh("true"), quiet)
    prepared.close()
    prepared.close()


async def test_node_is_a_token_of_a_subject(place: Place) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]+", place.backend.node)


async def test_a_finished_status_outlives_the_container(place: Place) -> None:
    container = await place.run("echo hello; exit 7")
    status = await wait(container)
    await (await place.backend.get(place.ns(), "task")).cleanup()
    assert await container.status() == await wait(container) == status
    with pytest.raises(Gone):
        await container.logs(Said())
