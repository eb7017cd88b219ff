"""The archive format a Linux kernel takes as its first file system: "newc" cpio, as the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst has it."""

from __future__ import annotations

import stat
from pathlib import PurePosixPath

__all__ = ["Archive"]


class Archive:
    """Collects entries, all of root. Directories on the way to an entry are made."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0
        self._directories: set[str] = set()

    def directory(self, path: str, mode: int = 0o755) -> None:
        """A directory; one that is there already stays as it is."""
        if path in self._directories or path in ("", "."):
            return
        self._parents(path)
        self._directories.add(path)
        self._entry(path, stat.S_IFDIR | mode)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self._parents(path)
        self._entry(path, stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._parents(path)
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int) -> None:
        """A character device that only root may open."""
        self._parents(path)
        self._entry(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def to_bytes(self) -> bytes:
        """The archive, ended and padded. Nothing may be added afterwards."""
        self._entry("TRAILER!!!", 0)
        self._pad(512)
        return bytes(self._data)

    def _parents(self, path: str) -> None:
        self.directory(str(PurePosixPath(path).parent))

    def _entry(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        links, checksum = 1, 0
        fields = (self._inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(encoded), checksum)
        self._data += b"070701" + b"".join(b"%08X" % value for value in fields) + encoded
        self._pad(4)
        self._data += content
        self._pad(4)

    def _pad(self, to: int) -> None:
        self._data += bytes(-len(self._data) % to)
