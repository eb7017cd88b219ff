"""Directories as tar streams, and archives that are looked through before they are unpacked."""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
import stat
import tarfile
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from conveyor_runtime.errors import TerminalError

__all__ = ["CLEAR", "check_members", "check_path", "members", "packed", "spooled_archive", "tar_stream"]

_CHUNK = 1024 * 1024
_BLOCK = tarfile.BLOCKSIZE

#: A shell script for a sandbox whose files only its own processes reach: it makes room for an archive.
CLEAR = r"""
# $1 workspace, $2 directory in it, which is made, or emptied. Refuses one that a link leads out of the workspace.
cd "$1" || exit 1
if [ -L "./$2" ] || [ ! -d "./$2" ]; then rm -f "./$2"; fi
cv_root=$(pwd -P) && mkdir -p "./$2" && cd "./$2" && cv_here=$(pwd -P) || exit 1
case $cv_here/ in "$cv_root"/*) ;; *) echo "$2 leads out of the workspace" >&2; exit 1;; esac
for cv_entry in * .[!.]* ..?*; do
  if [ -e "$cv_entry" ] || [ -L "$cv_entry" ]; then rm -rf "./$cv_entry" || exit 1; fi
done
"""


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
    """The tar archive of what is below `source`, in pieces made while they are sent: nothing of it is held in memory or
    on disk. Checks everything before the first piece."""
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


@asynccontextmanager
async def spooled_archive(archive: AsyncIterable[bytes]) -> AsyncIterator[IO[bytes]]:
    """All of it in a file without a name, at its beginning: it is looked through before anything is unpacked."""
    with tempfile.TemporaryFile() as file:
        async for piece in archive:
            await asyncio.to_thread(file.write, piece)
        file.seek(0)
        yield file


def check_members(archive: tarfile.TarFile) -> None:
    """Raise `TerminalError` for a member that leads out of where it is unpacked, by its name, by `..` or through a link
    of the archive's own, and for one that is no file, directory or link."""
    links: set[str] = set()
    for member in archive:
        name = check_path(member.name)
        parts = name.split("/")
        if any("/".join(parts[:depth]) in links for depth in range(1, len(parts))):
            raise TerminalError(f"{member.name!r} leads through a link")
        if member.issym():
            check_path(posixpath.join(posixpath.dirname(name), member.linkname), member.linkname)
            links.add(name)
        elif member.islnk():
            check_path(member.linkname)
        elif not (member.isfile() or member.isdir()):
            raise TerminalError(f"{member.name!r} is neither a file, a directory nor a link")


def check_path(path: str, given: str | None = None) -> str:
    """A path below a volume in its shortest form. `TerminalError`, with `given` as its text, for one that leads out."""
    relative = posixpath.normpath(path)
    text = path if given is None else given
    if not text or "\0" in text or text.startswith("/") or relative.split("/")[0] == "..":
        raise TerminalError(f"{text!r} leads out of the volume")
    return relative


def packed(file: IO[bytes], root: Path, paths: tuple[str, ...]) -> None:
    """Write these paths of `root`, or everything, as a tar archive. Raises OSError, also for a path that leads out of
    it through a link."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in paths or (".",):
            relative = check_path(path)
            place = root / relative
            if not place.parent.resolve().is_relative_to(root.resolve()) and relative != ".":
                raise FileNotFoundError(errno.ENOENT, "not in the volume", path)
            archive.add(place, arcname=relative, filter=_plain)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Sockets and the like stay behind."""
    return member if member.isfile() or member.isdir() or member.issym() or member.islnk() else None
