"""The suite's shell scripts as programs of the mock: what it does not make up itself is done by a real shell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import tempfile
from pathlib import Path

from conveyor_runtime.kit.shielded import finish, hold
from conveyor_runtime.orchestra import Stream, Task, mount_path
from conveyor_runtime.orchestra.mock import Killed, Process, Program
from conveyor_runtime.orchestra.native.proc import Target, start_of, sweep


class Shell:
    """Programs for any task. `root` is where volumes and working directories are."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, task: Task) -> Program:
        return self._run

    async def _run(self, process: Process) -> int:
        if not process.task.command:
            await process.write(b"own\n")
            return 0
        process.handles_term = True
        folder = self._folder(process)
        if not folder.is_dir():
            await process.write(f"there is no {folder}\n".encode(), "stderr")
            return 125
        with tempfile.TemporaryFile() as stdin:
            stdin.write(await process.read())
            stdin.seek(0)
            return await _shell(process, folder, stdin.fileno())

    def _folder(self, process: Process) -> Path:
        """Where it works, with its volumes in place."""
        task, home = process.task, process.workspace or Path(tempfile.mkdtemp(dir=self._root))
        for mount in task.mounts:
            content = process.volumes[mount.volume]
            if "folder" not in content:
                content["folder"] = tempfile.mkdtemp(dir=self._root)
            # The workdir of an exec is a real one already.
            inside = mount.path if process.workspace else os.path.relpath(mount_path(task, mount.path), task.workdir)
            link = home / inside
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(content["folder"])
        return Path(task.workdir) if process.workspace else home


async def _shell(process: Process, folder: Path, stdin: int) -> int:
    mark = f"MOCK={secrets.token_hex(8)}"
    words, env = process.task.command, {"PATH": os.environ["PATH"], **process.task.env, "MOCK": mark[5:]}
    start = asyncio.create_subprocess_exec(
        *words, cwd=folder, env=env, stdin=stdin, stdout=-1, stderr=-1, start_new_session=True
    )
    try:
        child = await hold(start)
    except OSError as error:
        await process.write(f"{words[0]}: {error}\n".encode(), "stderr")
        return 127 if isinstance(error, FileNotFoundError) else 126
    target = Target(mark.encode(), child.pid, start_of(child.pid))
    assert child.stdout is not None
    assert child.stderr is not None
    pumps = [
        asyncio.create_task(_pump(process, child.stdout, "stdout")),
        asyncio.create_task(_pump(process, child.stderr, "stderr")),
    ]
    asked = asyncio.create_task(_terminate(process, target))
    leaves = False
    try:
        code = await child.wait()
        # What an exec leaves goes on, and may hold its output; that of a container ends with it.
        leaves = process.workspace is not None and not process.terminated.is_set() and bool(sweep([target], 0))
    finally:
        asked.cancel()
        if leaves:
            process.left.append(asyncio.create_task(_tend(process, target)))
            await asyncio.wait(pumps, timeout=0.5)
        else:
            await finish(_kill(target))
            with contextlib.suppress(ProcessLookupError):
                await finish(child.wait())
            await finish(asyncio.wait(pumps))
        for pump in pumps:
            pump.cancel()
    if code < 0:
        raise Killed(-code)
    return code


async def _tend(process: Process, target: Target) -> None:
    """Watch over what an exec has left behind."""
    try:
        while not process.terminated.is_set() and sweep([target], 0):
            await asyncio.sleep(0.05)
        while sweep([target], signal.SIGTERM):
            await asyncio.sleep(0.05)
    finally:
        await finish(_kill(target))


async def _kill(target: Target) -> None:
    while sweep([target], signal.SIGKILL):
        await asyncio.sleep(0.005)


async def _terminate(process: Process, target: Target) -> None:
    await process.terminated.wait()
    sweep([target], signal.SIGTERM)


async def _pump(process: Process, source: asyncio.StreamReader, stream: Stream) -> None:
    while data := await source.read(65536):
        await process.write(data, stream)
