"""The way to a keeper."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import conveyor_runtime
from conveyor_runtime.errors import BackendError
from conveyor_runtime.orchestra.native import keeper
from conveyor_runtime.orchestra.native.job import Job

__all__ = ["Keeping"]


class Keeping:
    """One keeper of this process, started when it is first needed and again if it dies."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def keep(self, job: Job) -> bool:
        """Have the job started; False if it is with another keeper, or was begun by one that has died. Raises
        `BackendError` if no keeper can be had, or it cannot start anything now."""
        line = json.dumps(vars(job)).encode() + b"\n"
        async with self._turn:
            # One that has died is known by its record to have begun it, or has not begun it.
            answer = await self._ask(line) or await self._ask(line)
        if not answer:
            raise BackendError("the keeper of native containers does not stay alive")
        if answer not in (b"ok\n", b"taken\n"):
            raise BackendError(f"a container cannot be started now: {answer.decode().strip()}")
        return answer == b"ok\n"

    async def close(self) -> None:
        """Let it go: it ends when it has nothing to keep."""
        self._drop()

    async def _ask(self, line: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        control = self._socket or await self._begin()
        try:
            await loop.sock_sendall(control, line)
            answer = await loop.sock_recv(control, 4096)
        except OSError:
            answer = b""
        except BaseException:
            self._drop()  # its answer would be taken for the next one's
            raise
        if not answer:
            self._drop()
        return answer

    async def _begin(self) -> socket.socket:
        control, self._process = await asyncio.to_thread(_start)
        self._socket = control
        return control

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            # It is to outlive us, if it has work; without, it ends now and is reaped here or by init.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.2)
            self._process.returncode = 0
            self._process = None


def _start() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, its = socket.socketpair()
    try:
        place = str(Path(conveyor_runtime.__file__).parent.parent)
        process = subprocess.Popen(
            [sys.executable, "-m", keeper.__name__, str(its.fileno())],
            env={**os.environ, "PYTHONPATH": place},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[its.fileno()],
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        raise BackendError(f"cannot start a keeper of native containers: {error}") from error
    finally:
        its.close()
    ours.setblocking(False)
    return ours, process
