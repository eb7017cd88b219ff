"""A volume: a directory of the machine's share, so it is there before its machine and after it.

What is in it is packed and unpacked by the guest: only there are owners and links what they are for the tasks, and a
link that leads astray leads astray in the guest.
"""

from __future__ import annotations

import asyncio
import posixpath
import tarfile
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import IO

from conveyor_runtime.errors import BackendError, Gone, TerminalError
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.orchestra.archive import check_members, check_path, spooled_archive
from conveyor_runtime.orchestra.qemu import file_scripts, scripts
from conveyor_runtime.orchestra.qemu.transfer import passing, sent
from conveyor_runtime.orchestra.qemu.vm import VOLUMES, Vm

__all__ = ["QemuVolume"]

_CHUNK = 1 << 20
_AT_ONCE = 200  # paths in one command line
_COPY = 600.0  # seconds
_LEADS_OUT, _NOT_THERE = 43, 44


class QemuVolume:
    """See `conveyor_runtime.orchestra.base.Volume` and `capabilities.VolumeCopy`."""

    def __init__(self, name: str, machine: Callable[[], Awaitable[Vm]], remove: Callable[[], Awaitable[None]]) -> None:
        """`machine` has one of the namespace run, and raises `Gone` if the volume is not there."""
        self._name = name
        self._machine = machine
        self._remove = remove
        self._inside = f"/run/conveyor/share/{VOLUMES}/{name}"

    @property
    def name(self) -> str:
        return self._name

    async def cleanup(self) -> None:
        """See the contract."""
        await self._remove()

    async def copy_in(self, archive: AsyncIterable[bytes]) -> None:
        """See the contract."""
        async with spooled_archive(archive) as file:
            names = await asyncio.to_thread(_checked, file)
            vm = await self._machine()
            await self._check_ways(vm, names)
            file.seek(0)
            async with sent(vm, iter(lambda: file.read(_CHUNK), b"")) as path:
                await finish(vm.guest.run(scripts.WAKE + file_scripts.UNPACK, path, self._inside, "", timeout=_COPY))

    async def copy_out(self, *paths: str) -> AsyncIterator[bytes]:
        """See the contract."""
        for path in paths:
            check_path(path)
        vm = await self._machine()
        await self._check_ways(vm, paths, there=True)
        words = [f"./{path}" if path.startswith("-") else path for path in paths] or ["."]
        with passing(vm) as (file, path):
            await finish(vm.guest.run(scripts.WAKE + file_scripts.PACK, path, self._inside, *words, timeout=_COPY))
            with await asyncio.to_thread(file.open, "rb") as opened:
                while data := await asyncio.to_thread(opened.read, _CHUNK):
                    yield data

    async def _check_ways(self, vm: Vm, names: Iterable[str], *, there: bool = False) -> None:
        """Raise for a name that a link, one that some task left, leads out of the volume; and with `there`, for one
        that is not there."""
        ways = {posixpath.dirname(posixpath.normpath(name)) for name in names}
        ways |= {posixpath.dirname(way) for way in list(ways)}
        while more := {posixpath.dirname(way) for way in ways} - ways:
            ways |= more
        asked = [("way", way) for way in sorted(ways) if way not in ("", ".")]
        asked += [("there", name) for name in names] if there else []
        for start in range(0, len(asked), _AT_ONCE):
            words = [word for pair in asked[start : start + _AT_ONCE] for word in pair]
            ran = await vm.guest.agent.run(
                ["/bin/sh", "-c", scripts.WAKE + file_scripts.WAYS, "sh", self._inside, *words]
            )
            said = ran.err.decode(errors="replace").strip()
            if ran.code == _LEADS_OUT:
                raise TerminalError(f"volume {self._name}: {said}")
            if ran.code == _NOT_THERE:
                raise Gone(f"volume {self._name}: {said}")
            if ran.code:
                raise BackendError(f"volume {self._name} cannot be looked at: {said}")


def _checked(file: IO[bytes]) -> list[str]:
    """The names in an archive of which none is refused."""
    try:
        with tarfile.open(fileobj=file) as archive:
            check_members(archive)
            return archive.getnames()
    except tarfile.TarError as error:
        raise TerminalError(f"this is no tar archive: {error}") from error
