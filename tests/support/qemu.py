"""The guest that the tests boot, and a place for the suite that looks into machines."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pytest

from conveyor_runtime.errors import ConveyorError
from conveyor_runtime.orchestra import Backend, Wish
from conveyor_runtime.orchestra.qemu import QemuBackend
from conveyor_runtime.orchestra.qemu.image import build
from conveyor_runtime.orchestra.qemu.images import default_directory
from conveyor_runtime.testing import Place
from tests.support.required import missing

__all__ = ["QemuPlace", "Shared", "guest_image", "qemu_place", "qemu_processes", "shared_machines"]

_PREFIX = "conveyor-qemu-"
# Without a single fork: each takes ten milliseconds. `read` drops the NULs between the words.
_SLEEPING = r"""
for group in /sys/fs/cgroup/conveyor/*/*/cgroup.procs; do
  while read -r pid; do
    read -r words < "/proc/$pid/cmdline"
    case $words in *sleep"$1") echo "$pid";; esac
  done < "$group" 2> /dev/null
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


@dataclass(frozen=True)
class Shared:
    """What the tests of one session have in common, so that most of them find a machine that runs already."""

    root: Path
    images: Path
    installation: str


class QemuPlace(Place):
    """Looks into machines, and lets the one of the usual namespace go on, emptied, for the next test."""

    def __init__(self, shared: Shared, host_paths: tuple[Path, ...]) -> None:
        async def open_backend() -> Backend:
            return QemuBackend(shared.root, shared.images, host_paths)

        keeps: set[Wish] = {"cpu limit", "memory limit", "pids limit", "absolute mount paths", "read-only mounts"}
        keeps |= {"host mounts", "tmpfs", "user", "privileged", "network none", "named network"}
        super().__init__(
            open_backend,
            image="small",
            keeps=keeps,
            sandboxes_keep={*keeps, "mounts"},
            network="user",
            host_path=host_paths[0],
        )
        self.installation = shared.installation

    async def sleeping(self, number: str) -> int:
        found = 0
        for ns in self._used:
            machine = self._qemu._fleet.find(ns)
            if machine is not None:
                found += len((await machine[0].guest.run(_SLEEPING, number)).splitlines())
        return found

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        usual = self.ns()
        if error is None and await self._emptied(usual):
            self._used.discard(usual)
        await super().__aexit__(kind, error, at)

    async def _emptied(self, ns: str) -> bool:
        """Remove what is in the namespace; False if its machine is not what any task could use."""
        layout, found = self._qemu._layout, self._qemu._fleet.find(ns)
        if found is None or found[1].network or found[1].exports:
            return False
        for task_id in layout.tasks(ns):
            await self._qemu._remover(ns, task_id)()
        for name in layout.volumes(ns):
            await self._qemu.volume(ns, name).cleanup()
        return True

    @property
    def _qemu(self) -> QemuBackend:
        assert isinstance(self.backend, QemuBackend)
        return self.backend


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


@pytest.fixture(scope="session")
def shared_machines(guest_image: Path) -> Iterator[Shared]:
    """Ends, after the last test, what the tests left running for each other; and what a session left that was killed,
    known by its lock that nobody holds."""
    places = Path(tempfile.gettempdir())
    for old in places.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (old / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _end_all(old / "root", guest_image)
            shutil.rmtree(old)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, Path(folder, "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shared = Shared(Path(folder, "root"), guest_image, f"t{secrets.token_hex(4)}")
        yield shared
        _end_all(shared.root, guest_image)
        assert not qemu_processes(shared.root)


def _end_all(root: Path, images: Path) -> None:
    async def close() -> None:
        backend = QemuBackend(root, images)
        for home in list(root.glob("cv-*")):
            await backend.close_namespace(home.name, grace=0)
        await backend.close()

    asyncio.run(close())


@pytest.fixture
async def qemu_place(shared_machines: Shared, tmp_path: Path) -> AsyncIterator[QemuPlace]:
    """A place whose tasks may mount what is below `tmp_path`/host."""
    async with QemuPlace(shared_machines, host_paths=(tmp_path / "host",)) as place:
        yield place
