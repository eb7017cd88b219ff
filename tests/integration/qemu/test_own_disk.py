"""A disk of the user's own: started by its own boot loader and kernel, and never written."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from conveyor_runtime.orchestra import Backend
from conveyor_runtime.orchestra.qemu import QemuBackend, accel, process
from conveyor_runtime.orchestra.qemu.vm import BINARY
from conveyor_runtime.testing import Place, run
from tests.support.required import missing

pytestmark = pytest.mark.qemu

_APPEND = "initrd=initrd console=ttyS0 quiet mitigations=off panic=-1 cryptomgr.notests init_on_alloc=0"
_CONFIG = f"default linux\nlabel linux\n  kernel vmlinuz\n  append {_APPEND}\n"


def kernel_of(package: Path) -> bytes:
    """The kernel as it comes. Unpacking ends there: what follows is much, and takes seconds."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacking:
        assert unpacking.stdout is not None
        with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
            found = next(archive.extractfile(it) for it in archive if it.name.startswith("./boot/vmlinuz"))
            assert found is not None
            kernel = found.read()
        unpacking.kill()
    return kernel


@pytest.fixture
def disk(guest_image: Path, tmp_path: Path) -> Path:
    """A FAT file system with syslinux, Debian's kernel as it comes in its package, and the small guest's programs."""
    for tool in ("syslinux", "mcopy", "mkfs.vfat"):
        if shutil.which(tool, path="/usr/bin:/usr/sbin:/bin:/sbin") is None:
            missing("qemu", f"a disk to boot needs {tool}")
    [package] = (guest_image / "packages").glob("linux-image-*.deb")
    (tmp_path / "vmlinuz").write_bytes(kernel_of(package))
    (tmp_path / "syslinux.cfg").write_text(_CONFIG)
    image = tmp_path / "disk.raw"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["/sbin/mkfs.vfat", "-F", "32", image], check=True, capture_output=True)
    subprocess.run(["syslinux", "--install", image], check=True, capture_output=True)
    files = [guest_image / "initrd", tmp_path / "vmlinuz", tmp_path / "syslinux.cfg"]
    subprocess.run(["mcopy", "-i", image, *files, "::"], check=True, capture_output=True)
    return image


@pytest.fixture
async def images(guest_image: Path, tmp_path: Path) -> Path:
    """A directory of its own, for a frozen machine that is of no use to others; what is known of the processor goes
    along."""
    await accel.probe(BINARY, process.version_of(BINARY), guest_image)
    (tmp_path / "images").mkdir()
    for answer in guest_image.glob("accelerator-*.json"):
        shutil.copy(answer, tmp_path / "images")
    return tmp_path / "images"


async def test_a_disk_of_ones_own(tmp_path: Path, disk: Path, images: Path) -> None:
    before = hashlib.sha256(disk.read_bytes()).digest()

    async def open_backend() -> Backend:
        return QemuBackend(tmp_path / "root", images)

    said: list[str] = []

    async def progress(line: str) -> None:
        said.append(line)

    async with Place(open_backend, image=str(disk)) as place:
        await place.backend.prepare(place.task(), progress)
        assert any(str(disk) in line for line in said)
        sandbox = await place.sandboxes().start_sandbox(place.ns(), place.task(), place.owner())
        script = "mkdir /run/seed && mount -t iso9660 -o ro /dev/vdb /run/seed && head -c 13 /run/seed/user-data; echo"
        written = "dd if=/dev/zero of=/dev/vda bs=1M count=1 2> /dev/null; sync; echo written"
        status, out = await run(sandbox, f"{script}; {written}")
        assert (status.status, out.stdout) == ("success", b"#cloud-config\nwritten\n"), out.stderr
    assert hashlib.sha256(disk.read_bytes()).digest() == before
