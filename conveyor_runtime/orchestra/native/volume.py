"""A native volume: a directory, and symbolic links to it where containers mount it."""

from __future__ import annotations

import asyncio
import tarfile
import tempfile
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import IO

from conveyor_runtime.errors import BackendError, Gone, TerminalError
from conveyor_runtime.orchestra.archive import check_members, check_path, packed, spooled_archive
from conveyor_runtime.orchestra.native import records, retiring
from conveyor_runtime.orchestra.native.layout import read_meta

__all__ = ["NativeVolume", "volume_dir"]


def volume_dir(name: str) -> str:
    """Its directory in the namespace; no task id holds a dot."""
    return f"volume.{name}"


class NativeVolume:
    """See `conveyor_runtime.orchestra.base.Volume` and `capabilities.VolumeCopy`."""

    def __init__(self, root: Path, ns: str, name: str) -> None:
        self._root = root
        self._ns = ns
        self._name = name
        self._data = root / ns / volume_dir(name) / "data"

    @property
    def name(self) -> str:
        return self._name

    async def cleanup(self) -> None:
        """See the contract."""
        await asyncio.to_thread(self._remove)

    async def copy_in(self, archive: AsyncIterable[bytes]) -> None:
        """See the contract."""
        async with spooled_archive(archive) as file:
            await asyncio.to_thread(self._unpack, file)

    async def copy_out(self, *paths: str) -> AsyncIterator[bytes]:
        """See the contract."""
        for path in paths:
            check_path(path)
        with tempfile.TemporaryFile() as file:
            await asyncio.to_thread(self._pack, file, paths)
            while data := await asyncio.to_thread(file.read, 1 << 20):
                yield data

    def _pack(self, file: IO[bytes], paths: tuple[str, ...]) -> None:
        try:
            packed(file, self._data, paths)
        except FileNotFoundError as error:
            raise Gone(f"volume {self._name}: {error.filename} is not there") from error
        except OSError as error:
            raise BackendError(f"volume {self._name} cannot be read: {error}") from error
        file.seek(0)

    def _unpack(self, file: IO[bytes]) -> None:
        try:
            with tarfile.open(fileobj=file) as archive:
                check_members(archive)
                # The filter looks once more, at what is really there: a link a task has left must not lead out.
                archive.extractall(self._data, filter="data")
        except tarfile.FilterError as error:
            raise TerminalError(f"volume {self._name}: {error}") from error
        except tarfile.TarError as error:
            raise TerminalError(f"this is no tar archive: {error}") from error
        except FileNotFoundError as error:
            raise Gone(f"volume {self._name} was removed") from error
        except OSError as error:
            raise BackendError(f"volume {self._name} cannot be written: {error}") from error

    def _remove(self) -> None:
        users = _users(self._root, self._ns, self._name)
        if users:
            raise BackendError(f"volume {self._name} is in use by {', '.join(users)}")
        place = retiring.retire_one(self._root, self._ns, volume_dir(self._name))
        if place is not None:
            retiring.remove_tree(place)
            if place.exists():
                raise BackendError(f"volume {self._name} cannot be removed: {place}")


def _users(root: Path, ns: str, volume: str) -> list[str]:
    """The containers of the namespace that mount it and have not ended."""
    found = []
    for path in records.listdir(root / ns):
        meta = read_meta(path)
        if meta is not None and volume in meta.volumes and not (path / "exit").exists():
            found.append(path.name)
    return found
