"""The qemu process of a machine: started to outlive us, found again by its pid file, its end noticed at once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from conveyor_runtime.errors import BackendError, BackendUnavailable
from conveyor_runtime.orchestra.qemu.machine import CONSOLE, PID

__all__ = ["Process", "find", "start"]

_START = 60.0  # seconds
_TAIL = 4000  # bytes of the guest's console in an error: a panic is half of that


class Process:
    """A living qemu, also one that another process started. Close it."""

    def __init__(self, pid: int, handle: int, directory: Path) -> None:
        self.pid = pid
        self.ended = asyncio.Event()
        self._handle = handle
        self._directory = directory
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(handle, self._on_end)

    async def kill(self) -> None:
        """End it at once; returns when it is gone."""
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            await self.ended.wait()

    def last_words(self) -> str:
        """The end of what the guest wrote to its console: a panic is there."""
        return console_tail(self._directory)

    def close(self) -> None:
        """Stop watching."""
        if self._handle >= 0:
            self._loop.remove_reader(self._handle)
            os.close(self._handle)
            self._handle = -1

    def _on_end(self) -> None:
        self._loop.remove_reader(self._handle)
        self.ended.set()


def find(directory: Path) -> Process | None:
    """The qemu whose files are in `directory`, if it lives.

    Its pid file proves nothing, numbers are used again: only a process that was started with that very file counts.
    """
    try:
        pid = int((directory / PID).read_text())
        handle = os.pidfd_open(pid)
    except (OSError, ValueError):
        return None
    if _is_ours(pid, directory):
        return Process(pid, handle, directory)
    os.close(handle)
    return None


async def start(binary: str, arguments: list[str], directory: Path, inherited: Sequence[int] = ()) -> Process:
    """Start it and return when its sockets are there. It does not end with us. `inherited` = files it finds open.

    Raises `BackendUnavailable` if there is no qemu, `BackendError` with its own words if it refuses.
    """
    # It takes itself into the background when it is ready, and writes its pid file before: no moment in which it runs
    # and cannot be found.
    command = [binary, *arguments, "-daemonize", "-pidfile", str(directory / PID)]
    nothing = asyncio.subprocess.DEVNULL
    log = directory / "qemu.log"
    try:
        with log.open("wb") as stderr:
            child = await asyncio.create_subprocess_exec(
                *command,
                stdin=nothing,
                stdout=nothing,
                stderr=stderr,
                cwd=directory,
                start_new_session=True,
                pass_fds=inherited,
            )
            try:
                async with asyncio.timeout(_START):
                    code = await child.wait()
            finally:
                if child.returncode is None:
                    child.kill()
                    await child.wait()
    except TimeoutError as error:
        raise BackendError(f"qemu was not ready within {_START:g} s") from error
    except FileNotFoundError as error:
        raise BackendUnavailable(f"there is no {binary}; apt-get install qemu-system-x86") from error
    if code != 0:
        raise BackendError(f"qemu does not start (code {code}): {log.read_text(errors='replace').strip()[-_TAIL:]}")
    found = find(directory)
    if found is None:
        raise BackendError(f"qemu ended as soon as it was started; its console says: {console_tail(directory)!r}")
    return found


def console_tail(directory: Path) -> str:
    """The end of what a guest wrote to its console."""
    try:
        with (directory / CONSOLE).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""


def kill_strays(directory: Path) -> None:
    """Kill a qemu of `directory` that cannot be found by its pid file: whoever started it was killed on the way."""
    for name in os.listdir("/proc"):
        if name.isdigit() and _is_ours(int(name), directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(name), signal.SIGKILL)


def _is_ours(pid: int, directory: Path) -> bool:
    """Whether it lives and was started with the pid file of `directory`."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    mark = os.fsencode(directory / PID)
    return state not in (b"Z", b"X") and any(pair == (b"-pidfile", mark) for pair in itertools.pairwise(words))


def version_of(binary: str) -> str:
    """What the program says of itself, one line. Raises `BackendUnavailable` if there is none."""
    try:
        found = os.stat(shutil.which(binary) or binary)
    except OSError as error:
        raise BackendUnavailable(f"there is no {binary}; apt-get install qemu-system-x86") from error
    return _said_by(binary, found.st_ino, found.st_mtime_ns)


@functools.lru_cache
def _said_by(binary: str, *_: int) -> str:
    """Asked again when the file is another one: to load qemu takes longer than all else before a machine begins."""
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BackendUnavailable(f"{binary} cannot be run: {error}") from error
    return done.stdout.partition("\n")[0]
