"""Execs: what goes in arrives, what comes out comes at once, and the end is told honestly."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

from conveyor_runtime.errors import TerminalError
from conveyor_runtime.orchestra import Sandbox
from conveyor_runtime.testing.place import TAG, Place, Said, run

HARD = ["a b", "it's", 'say "x"', ";", "$(id)", "`id`", "$HOME", "*", "\\", "-n", "", "new\nline", "ü€😀"]


async def test_arguments_stay_as_they_are(sandbox: Sandbox) -> None:
    said = Said()
    status = await sandbox.exec(["printf", "[%s]", *HARD], workdir=".", on_output=said, tag=TAG)
    assert status.status == "success"
    assert said.stdout.decode() == "".join(f"[{word}]" for word in HARD)


async def test_environment_of_one_exec(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKERS_SECRET", "x")
    value = "two words\nand 'quotes' $(id) = end"
    _, said = await run(
        sandbox, 'printf %s "$VALUE"; printf "|%s|%s" "$EMPTY" "$WORKERS_SECRET"', env={"VALUE": value, "EMPTY": ""}
    )
    assert said.stdout.decode() == f"{value}||"
    _, said = await run(sandbox, 'printf %s "$VALUE"')
    assert said.stdout == b""


@pytest.mark.parametrize("size", [1, 70_000, 8 << 20])
async def test_stdin_of_an_exec(sandbox: Sandbox, size: int) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    _, said = await run(sandbox, "sha256sum", stdin=data)
    assert said.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_stdin_in_pieces_and_none_at_all(sandbox: Sandbox) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            await asyncio.sleep(0.01)
            yield b"%d\n" % number

    assert (await run(sandbox, "cat", stdin=pieces()))[1].stdout == b"0\n1\n2\n"
    assert (await run(sandbox, "cat; echo end"))[1].stdout == b"end\n"


async def test_stdin_that_an_exec_does_not_read(sandbox: Sandbox) -> None:
    async with asyncio.timeout(20):
        status, said = await run(sandbox, "echo done", stdin=bytes(4 << 20))
    assert (status.status, said.stdout) == ("success", b"done\n")


async def test_workdir_relative_absolute_missing(sandbox: Sandbox) -> None:
    await run(sandbox, "mkdir -p 'a b/c'")
    for workdir, expected in (
        (None, sandbox.workspace),
        ("a b/c", f"{sandbox.workspace}/a b/c"),
        (f"{sandbox.workspace}/a b", f"{sandbox.workspace}/a b"),
        ("/", "/"),
    ):
        _, said = await run(sandbox, "pwd", workdir=workdir)
        assert said.stdout.decode().rstrip("\n") == expected
    status, said = await run(sandbox, "echo ran", workdir="nowhere")
    assert status.status == "error"
    assert said.stdout == b""
    assert b"nowhere" in said.stderr


@pytest.mark.parametrize("code", [0, 1, 7, 42, 255])
async def test_exit_codes(sandbox: Sandbox, code: int) -> None:
    status, _ = await run(sandbox, f"exit {code}")
    assert (status.exit_code, status.status) == (code, "error" if code else "success")
    assert status.reason is None
    assert status.started_at <= status.finished_at


@pytest.mark.parametrize(
    ("script", "code"), [("kill -9 $$", 137), ("kill -TERM $$", 143), ("sh -c 'kill -9 $$'; exit $?", 137)]
)
async def test_death_by_signal_is_a_failure(sandbox: Sandbox, script: str, code: int) -> None:
    status, _ = await run(sandbox, script)
    assert (status.status, status.exit_code, status.reason) == ("killed", code, "signal")


async def test_command_that_does_not_exist(sandbox: Sandbox) -> None:
    said = Said()
    status = await sandbox.exec(["no-such-command"], on_output=said, tag=TAG)
    assert (status.status, status.exit_code) == ("error", 127)
    assert b"no-such-command" in said.stderr


async def test_commands_that_cannot_be(sandbox: Sandbox) -> None:
    for argv in ([], ["a\0b"]):
        with pytest.raises(TerminalError):
            await sandbox.exec(argv, on_output=Said(), tag=TAG)


async def test_stdout_and_stderr_apart(sandbox: Sandbox) -> None:
    _, said = await run(sandbox, "echo out; echo err >&2; echo out2")
    assert (said.stdout, said.stderr) == (b"out\nout2\n", b"err\n")


async def test_stdin_is_empty(sandbox: Sandbox) -> None:
    status, said = await run(sandbox, "cat; echo end", timeout=10)
    assert (status.status, said.stdout) == ("success", b"end\n")


async def test_a_line_is_there_before_the_exit(sandbox: Sandbox) -> None:
    said = Said()
    running = asyncio.create_task(
        run(sandbox, "echo first; while [ ! -e go ]; do sleep 0.05; done; echo last", said=said)
    )
    await said.until(b"first")
    assert not running.done()
    await run(sandbox, "touch go")
    status, _ = await running
    assert (status.status, said.stdout) == ("success", b"first\nlast\n")


async def test_ten_megabytes_arrive_whole(sandbox: Sandbox) -> None:
    script = (
        "head -c 1048575 /dev/urandom > part; for n in 0 1 2 3 4 5 6 7 8 9; do printf $n; cat part; done > copy; "
        "cat copy; sha256sum copy >&2"
    )
    status, said = await run(sandbox, script)
    assert status.status == "success"
    assert len(said.stdout) == 10 * 1048576
    assert hashlib.sha256(said.stdout).hexdigest().encode() in said.stderr


async def test_a_slow_consumer_loses_nothing_and_holds_little(sandbox: Sandbox) -> None:
    taken = bytearray()

    async def slow(_: str, data: bytes) -> None:
        taken.extend(data)
        await asyncio.sleep(0.002)

    status = await sandbox.exec(["sh", "-c", "yes 0123456789 | head -c 3000000"], on_output=slow, tag=TAG)
    assert status.status == "success"
    assert bytes(taken) == (b"0123456789\n" * 300_000)[:3_000_000]


async def test_bytes_as_they_are(sandbox: Sandbox) -> None:
    _, said = await run(sandbox, r"printf 'no newline \377\000 \342\202'; sleep 0.1; printf '\254'")
    assert said.stdout == b"no newline \xff\x00 \xe2\x82\xac"


async def test_many_at_once(sandbox: Sandbox) -> None:
    found = await asyncio.gather(*(run(sandbox, f"echo {i}; exit {i}") for i in range(30)))
    assert [(status.exit_code, said.stdout) for status, said in found] == [(i, b"%d\n" % i) for i in range(30)]


async def test_failing_consumer_ends_the_exec(sandbox: Sandbox) -> None:
    async def broken(_: str, data: bytes) -> None:
        raise RuntimeError("the log is full")

    with pytest.raises(RuntimeError, match="the log is full"):
        async with asyncio.timeout(10):
            await sandbox.exec(["sh", "-c", "echo x; exec sleep 1000"], on_output=broken, tag=TAG, grace=0.2)


async def test_background_work_goes_on_between_execs(sandbox: Sandbox) -> None:
    async with asyncio.timeout(10):
        status, _ = await run(sandbox, "(while [ ! -e stop ]; do sleep 0.05; done; echo done > result) & echo started")
    assert status.status == "success"
    status, said = await run(sandbox, "touch stop; while [ ! -s result ]; do sleep 0.05; done; cat result", timeout=10)
    assert (status.status, said.stdout) == ("success", b"done\n")


async def test_survives_the_object_that_started_it(place: Place, sandbox: Sandbox) -> None:
    await run(sandbox, "mkdir -p kept")
    other = await (await place.open()).get_sandbox(place.ns(), "sandbox")
    assert (await run(other, "test -d kept"))[0].status == "success"
