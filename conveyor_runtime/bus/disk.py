"""The disk under an embedded server: whether there is room, and whether the server must be started again once there is.

A nats-server that could not write answers no publish to that stream any more, not even when there is room again.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

__all__ = ["Disk"]

log = logging.getLogger(__name__)

RESERVE = 16 << 20
"""Bytes free below which new work is refused: what is under way can still be written to its end."""

PERIOD = 1.0
"""Seconds between two looks."""

_NO_SPACE = (b"no space left on device", b"disk quota exceeded", b"file too large")


class Disk:
    """Watches the file system of `folder`, and what the server says in `logfile`."""

    def __init__(self, folder: Path, logfile: Path) -> None:
        self.full = False
        self._folder = folder
        self._logfile = logfile
        self._read = logfile.stat().st_size if logfile.exists() else 0
        self._choked = False

    async def until_server_must_restart(self) -> None:
        """Watch until there is room again for a server that has stopped writing."""
        while True:
            await asyncio.sleep(PERIOD)
            if self._look():
                self._choked = False
                return

    def _look(self) -> bool:
        stat = os.statvfs(self._folder)
        free = stat.f_bavail * stat.f_frsize
        if (free < RESERVE) is not self.full:
            self.full = not self.full
            if self.full:
                log.error("bus: the disk of %s is full: new work is refused until there is room", self._folder)
            else:
                log.warning("bus: there is room again on the disk of %s", self._folder)
        self._choked = self._choked or self._said_no_space()
        return self._choked and not self.full

    def _said_no_space(self) -> bool:
        try:
            size = self._logfile.stat().st_size
            with self._logfile.open("rb") as file:
                file.seek(self._read if size >= self._read else 0)  # it begins a new file now and then
                said = file.read()
                self._read = file.tell()
        except OSError:
            return False
        return any(words in said for words in _NO_SPACE)
