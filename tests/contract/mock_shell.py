"""The suite's shell scripts as programs of the mock: what it does not make up itself is done by a real shell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from pathlib import Path

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
        folder = Path(tempfile.mkdtemp(dir=self._root))
        for mount in process.task.mounts:
            content = process.volumes[mount.volume]
            if "folder" not in content:
                content["folder"] = tempfile.mkdtemp(dir=self._root)
            link = folder / os.path.relpath(mount_path(process.task, mount.path), process.task.workdir)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(content["folder"])
        with tempfile.TemporaryFile() as stdin:
            stdin.write(await process.read())
            stdin.seek(0)
            return await _shell(process, str(folder), stdin.fileno())


async def _shell(process: Process, folder: str, stdin: int) -> int:
    mark = f"MOCK={folder}"
    env = {"PATH": os.environ["PATH"], **process.task.env, "MOCK": folder}
    try:
        child = await asyncio.create_subprocess_exec(
            *process.task.command,
            cwd=folder,
            env=env,
            stdin=stdin,
            stdout=-1,
            stderr=-1,
            start_new_session=True,
        )
    except OSError as error:
        await process.write(f"{process.task.command[0]}: {error}\n".encode(), "stderr")
        return 127 if isinstance(error, FileNotFoundError) else 126
    target = Target(mark.encode(), child.pid, start_of(child.pid))
    assert child.stdout is not None
    assert child.stderr is not None
    pumps = [
        asyncio.create_task(_pump(process, child.stdout, "stdout")),
        asyncio.create_task(_pump(process, child.stderr, "stderr")),
    ]
    asked = asyncio.create_task(_terminate(process, target))
    try:
        code = await child.wait()
    finally:
        asked.cancel()
        while sweep([target], signal.SIGKILL):
            await asyncio.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            await child.wait()
        await asyncio.wait(pumps)
    if code < 0:
        raise Killed(-code)
    return code


async def _terminate(process: Process, target: Target) -> None:
    await process.terminated.wait()
    sweep([target], signal.SIGTERM)


async def _pump(process: Process, source: asyncio.StreamReader, stream: Stream) -> None:
    while data := await source.read(65536):
        await process.write(data, stream)
