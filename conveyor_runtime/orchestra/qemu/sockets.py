"""Unix sockets and locks below a directory whose path may be longer than a socket's address can be."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

__all__ = ["connect", "locked"]

_POLL = 0.002  # seconds; those who hold one of these locks hold it for milliseconds, or boot a machine
_POLL_MOST = 0.05


def connect(directory: Path, name: str) -> socket.socket:
    """A non-blocking connection to the socket `name` in `directory`. Raises OSError."""
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(f"/proc/self/fd/{handle}/{name}")
        connection.setblocking(False)
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(handle)
    return connection


@contextlib.asynccontextmanager
async def locked(file: Path) -> AsyncIterator[None]:
    """Hold the lock that `file` is, against every other process and task. Its directory is made if need be.

    The file may be removed by the holder: who waited for it then goes for the new one.
    """
    handle = await _acquire(file)
    try:
        yield
    finally:
        os.close(handle)


async def _acquire(file: Path) -> int:
    pause = _POLL
    while True:
        handle = _try(file)
        if handle is not None:
            return handle
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _POLL_MOST)


def _try(file: Path) -> int | None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:  # the directory went meanwhile
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.stat(file)):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None
