"""The guest that the tests boot, and a place for the suite that looks into machines."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conveyor_runtime.errors import ConveyorError
from conveyor_runtime.orchestra import Backend
from conveyor_runtime.orchestra.qemu import QemuBackend
from conveyor_runtime.orchestra.qemu.image import build
from conveyor_runtime.orchestra.qemu.images import default_directory
from conveyor_runtime.testing import Place
from tests.support.required import missing

__all__ = ["QemuPlace", "guest_image", "qemu_place", "qemu_processes"]

_SLEEPING = r"""
for file in /proc/[0-9]*/cmdline; do
  words=$(tr '\000' ' ' < "$file" 2> /dev/null)
  case $words in "sleep $1 "|*/sleep\ "$1 "|*busybox\ sleep\ "$1 ") echo "$words";; esac
done
exit 0
"""


@pytest.fixture(scope="session")
def guest_image() -> Path:
    """The directory of the small guest, made if it is missing. Skips where that cannot be, or fails if
    CONVEYOR_REQUIRE names qemu."""
    directory = default_directory()
    try:
        if shutil.which("qemu-system-x86_64") is None:
            missing("qemu", "there is no qemu-system-x86_64")
        if not (directory / "image.json").exists():
            build(directory, print)
    except ConveyorError as error:
        missing("qemu", str(error))
    return directory


class QemuPlace(Place):
    """Counts processes in the machines of all namespaces it gave out."""

    async def sleeping(self, number: str) -> int:
        backend = self.backend
        assert isinstance(backend, QemuBackend)
        found = 0
        for ns in self._used:
            machine = backend._fleet.find(ns)
            if machine is not None:
                found += len((await machine[0].guest.run(_SLEEPING, number)).splitlines())
        return found


def qemu_processes(root: Path) -> list[str]:
    """Command lines of the living machines that have their files below `root`."""
    found = []
    for name in os.listdir("/proc"):
        try:
            line = Path("/proc", name, "cmdline").read_bytes() if name.isdigit() else b""
        except OSError:
            continue
        if line.startswith(b"qemu-system-") and os.fsencode(root) + b"/" in line:
            found.append(line.replace(b"\0", b" ").decode())
    return found


@pytest.fixture
async def qemu_place(guest_image: Path, tmp_path: Path) -> AsyncIterator[QemuPlace]:
    """A root of its own; the image and its frozen machines are shared."""

    async def open_backend() -> Backend:
        return QemuBackend(tmp_path / "qemu", guest_image, host_paths=(tmp_path / "host",))

    async with QemuPlace(open_backend, image="small") as place:
        yield place
