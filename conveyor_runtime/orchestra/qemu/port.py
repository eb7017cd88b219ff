"""The host's end of a guest's serial port: two named pipes, held open by qemu for as long as it lives.

Not a socket, though qemu would offer one: through a socket the guest is told of every caller that comes and goes, and
its agent answers a departure by sleeping for a tenth of a second.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

__all__ = ["Port", "make_pipes"]

_CHUNK = 1024 * 1024


def make_pipes(directory: Path, name: str) -> None:
    """What `-chardev pipe,path=name` opens."""
    for way in ("in", "out"):
        os.mkfifo(directory / f"{name}.{way}", 0o600)


class Port:
    """One conversation over the port. Close it. Raises OSError, and EOFError when qemu has ended."""

    def __init__(self, directory: Path, name: str) -> None:
        """`directory` holds the pipes that qemu has open."""
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        # A pipe that qemu does not read any more cannot be opened so: ENXIO.
        self._out = os.open(directory / f"{name}.in", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._in = os.open(directory / f"{name}.out", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except BaseException:
            os.close(self._out)
            raise

    async def write(self, data: bytes) -> None:
        """Send all of it."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._out, left) :]
            except BlockingIOError:
                ready = asyncio.Event()
                self._loop.add_writer(self._out, ready.set)
                try:
                    await ready.wait()
                finally:
                    self._loop.remove_writer(self._out)

    async def read_line(self) -> bytes:
        """The next line."""
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            self._received += await self._read()
        line = bytes(self._received[: end + 1])
        del self._received[: end + 1]
        return line

    def close(self) -> None:
        """Let the next one talk."""
        os.close(self._in)
        os.close(self._out)

    async def _read(self) -> bytes:
        while True:
            try:
                data = os.read(self._in, _CHUNK)
            except BlockingIOError:
                ready = asyncio.Event()
                self._loop.add_reader(self._in, ready.set)
                try:
                    await ready.wait()
                finally:
                    self._loop.remove_reader(self._in)
                continue
            if not data:
                raise EOFError("qemu has ended")
            return data
