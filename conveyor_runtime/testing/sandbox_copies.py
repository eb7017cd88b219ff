"""Files into the workspace: all of them, as they are, and nowhere else."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from conveyor_runtime.errors import BackendError, TerminalError
from conveyor_runtime.orchestra import Sandbox
from conveyor_runtime.testing.place import run


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "deep/er").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "deep/er/file").write_bytes(b"x" * 1_000_003)
    (source / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (source / "run.sh").chmod(0o755)
    (source / ".hidden").write_text("h")
    (source / "none").touch()
    (source / "ü name\nwith 'all'").write_text("odd")
    os.symlink("run.sh", source / "link")
    os.symlink("/etc/passwd", source / "outside")
    (source / ("n" * 120)).mkdir()
    (source / ("n" * 120) / ("m" * 120)).write_text("long")
    return source


async def test_a_tree_arrives_as_it_is(sandbox: Sandbox, tree: Path) -> None:
    await sandbox.copy_in(tree, ".")
    script = (
        './run.sh && readlink link && readlink outside && cat .hidden none "$1" n*/m* && '
        "ls -d empty && wc -c < deep/er/file && stat -c %u . deep run.sh && id -u"
    )
    status, said = await run(sandbox, script, "ü name\nwith 'all'")
    assert status.status == "success", said.stderr
    *words, root, deep, file, user = said.stdout.split()
    assert words == [b"ran", b"run.sh", b"/etc/passwd", b"hoddlongempty", b"1000003"]
    assert root == deep == file == user


async def test_what_was_there_goes(sandbox: Sandbox, tree: Path) -> None:
    await run(sandbox, "mkdir -p old/x sub/y; echo 1 > old/f; echo 1 > .dot; echo 1 > ..dots; chmod a-w old")
    await sandbox.copy_in(tree, ".")
    _, said = await run(sandbox, "for f in * .[!.]*; do printf '%s\\n' \"$f\"; done")
    assert sorted(os.fsdecode(said.stdout).splitlines()) == sorted("\n".join(os.listdir(tree)).splitlines())
    await run(sandbox, "echo keep > keep; mkdir -p a/b; echo old > a/b/old")
    await sandbox.copy_in(tree, "a/b")
    _, said = await run(sandbox, "ls -d keep a/b/old a/b/run.sh")
    assert sorted(said.stdout.split()) == [b"a/b/run.sh", b"keep"]


async def test_a_file_or_link_in_the_way_is_replaced(sandbox: Sandbox, tree: Path) -> None:
    await run(sandbox, "echo x > file; mkdir precious; echo p > precious/p; ln -s precious link")
    await sandbox.copy_in(tree, "file")
    await sandbox.copy_in(tree, "link")
    status, said = await run(sandbox, "file/run.sh && link/run.sh && ls precious && test ! -L link")
    assert (status.status, said.stdout) == ("success", b"ran\nran\np\n")


@pytest.mark.parametrize("target", ["..", "../x", "/etc", "a/../../x", "a\0b", "/"])
async def test_targets_outside_are_refused(sandbox: Sandbox, tree: Path, target: str) -> None:
    with pytest.raises(TerminalError):
        await sandbox.copy_in(tree, target)


async def test_links_in_the_workspace_lead_nowhere(sandbox: Sandbox, tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "victim"
    outside.mkdir()
    (outside / "file").write_text("precious")
    await run(sandbox, f"mkdir -p {outside} 2>/dev/null; ln -s {outside} way")
    with pytest.raises((TerminalError, BackendError)):
        await sandbox.copy_in(tree, "way/deeper")
    assert [path.name for path in outside.iterdir()] == ["file"]


async def test_sockets_and_pipes_are_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    for name in ("pipe", "socket"):
        source = tmp_path / f"with-{name}"
        source.mkdir()
        if name == "pipe":
            os.mkfifo(source / "p")
        else:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(source / "s"))
        with pytest.raises(TerminalError):
            await sandbox.copy_in(source, ".")


async def test_a_copy_that_was_given_up_writes_no_more(sandbox: Sandbox, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(16):
        (source / f"{number:02}").write_bytes(bytes(1 << 20))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await sandbox.copy_in(source, "whole")
    whole = loop.time() - began
    for part in (0.0, 0.3, 0.5, 0.7):
        copying = asyncio.create_task(sandbox.copy_in(source, f"up-to-{part}"))
        await asyncio.sleep(part * whole)
        copying.cancel()
        await asyncio.wait([copying])
        _, before = await run(sandbox, "ls -lR")
        await asyncio.sleep(0.5)
        _, after = await run(sandbox, "ls -lR")
        assert before.stdout == after.stdout
