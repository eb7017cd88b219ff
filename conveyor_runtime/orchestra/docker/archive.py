"""A directory as a tar stream, made while it is sent: nothing of it is held in memory or on disk."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

from conveyor_runtime.errors import TerminalError

__all__ = ["members", "tar_stream"]

_CHUNK = 1024 * 1024
_BLOCK = tarfile.BLOCKSIZE


def members(source: Path) -> list[tuple[Path, tarfile.TarInfo]]:
    """What is below `source`, parents before children, as tar headers: owner root, links as links.

    Raises `TerminalError` for a device, pipe or socket. Links are never followed, so nothing outside gets in.
    """
    found: list[tuple[Path, tarfile.TarInfo]] = []
    todo = [source]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = Path(entry.path)
                found.append((path, _header(path, str(path.relative_to(source)))))
                if entry.is_dir(follow_symlinks=False):
                    todo.append(path)
    return found


def tar_stream(source: Path) -> Iterator[bytes]:
    """The tar archive of what is below `source`, in pieces. Checks everything before the first piece."""
    return _stream(members(source))


def _stream(entries: list[tuple[Path, tarfile.TarInfo]]) -> Iterator[bytes]:
    for path, header in entries:
        # The GNU form holds names of any length and any bytes.
        yield header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        if header.isreg():
            yield from _content(path, header.size)
    yield bytes(2 * _BLOCK)


def _content(path: Path, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes and the padding, also if the file is changing: the header is sent already."""
    left = size
    with open(path, "rb") as file:
        while left and (data := file.read(min(_CHUNK, left))):
            left -= len(data)
            yield data
    while left:
        data = bytes(min(_CHUNK, left))
        left -= len(data)
        yield data
    if size % _BLOCK:
        yield bytes(_BLOCK - size % _BLOCK)


def _header(path: Path, name: str) -> tarfile.TarInfo:
    found = path.lstat()
    header = tarfile.TarInfo(name)
    header.mode = stat.S_IMODE(found.st_mode)
    header.mtime = int(found.st_mtime)
    if stat.S_ISREG(found.st_mode):
        header.size = found.st_size
    elif stat.S_ISDIR(found.st_mode):
        header.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(found.st_mode):
        header.type = tarfile.SYMTYPE
        header.linkname = os.readlink(path)
    else:
        raise TerminalError(f"{path} is neither a file, a directory nor a link")
    return header
