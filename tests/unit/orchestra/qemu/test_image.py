"""Making a guest: the archive, the kernel in it, the order of its modules."""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest
from pycdlib import PyCdlib

from conveyor_runtime.errors import BackendError, ConfigError, ImageNotFound
from conveyor_runtime.orchestra.qemu.image import build
from conveyor_runtime.orchestra.qemu.image.cpio import Archive
from conveyor_runtime.orchestra.qemu.image.kernel import bootable, modules
from conveyor_runtime.orchestra.qemu.images import find_image
from conveyor_runtime.orchestra.qemu.seed import write_seed


def read_newc(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content by name, as the kernel's description of the format has it."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        at += 110 + name_size
        at += -at % 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, data[at : at + size])
        at += size + -size % 4


def test_archive_can_be_read_back() -> None:
    archive = Archive()
    archive.directory("tmp", 0o1777)
    archive.file("a/b/run.sh", b"#!/bin/sh\n", 0o755)
    archive.file("a/odd", b"x" * 5)
    archive.link("bin/ls", "busybox")
    archive.device("dev/null", 1, 3)
    data = archive.to_bytes()
    assert len(data) % 512 == 0
    assert read_newc(data) == {
        "tmp": (0o041777, b""),
        "a": (0o040755, b""),
        "a/b": (0o040755, b""),
        "a/b/run.sh": (0o100755, b"#!/bin/sh\n"),
        "a/odd": (0o100644, b"xxxxx"),
        "bin": (0o040755, b""),
        "bin/ls": (0o120777, b"busybox"),
        "dev": (0o040755, b""),
        "dev/null": (0o020600, b""),
    }


def test_the_kernel_is_taken_out_of_its_wrapping() -> None:
    kernel = b"\x7fELF" + bytes(range(256)) * 100
    wrapped = b"boot sector \xfd7zXZ\0 not yet" + lzma.compress(kernel, check=lzma.CHECK_CRC32) + b"tail"
    assert bootable(wrapped) == kernel
    assert bootable(b"packed in another way") == b"packed in another way"


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    needs = {
        "virtio-blk": b"depends=virtio,virtio-ring\0",
        "virtio": b"depends=\0",
        "virtio-ring": b"depends=virtio\0",
        "ext4": b"softdep=pre: crc32c-generic\0depends=jbd2\0",
        "jbd2": b"depends=\0",
        "crc32c-generic": b"depends=\0",
        "unrelated": b"depends=\0",
    }
    for name, info in needs.items():
        (tmp_path / f"{name}.ko").write_bytes(b"\x7fELF..\0license=GPL\0" + info)
    order = [path.stem for path in modules(tmp_path, ("virtio_blk", "ext4", "built_in"))]
    assert order == ["virtio", "virtio-ring", "virtio-blk", "crc32c-generic", "jbd2", "ext4"]
    with pytest.raises(BackendError):
        modules(tmp_path / "nothing")


def test_the_seed_is_what_cloud_init_looks_for(tmp_path: Path) -> None:
    write_seed(tmp_path / "seed.iso", 'cv-x-"run": yes')
    disc = PyCdlib()
    disc.open(str(tmp_path / "seed.iso"))
    assert disc.pvd.volume_identifier.decode().strip() == "cidata"
    texts = {}
    for name in ("user-data", "meta-data"):
        buffer = io.BytesIO()
        disc.get_file_from_iso_fp(buffer, rr_path=f"/{name}")
        texts[name] = buffer.getvalue().decode()
    disc.close()
    assert texts["user-data"].startswith("#cloud-config\n")
    assert '"instance-id": "cv-x-\\"run\\": yes"' in texts["meta-data"]


def test_without_apt_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("qemu-img", "mke2fs"):
        (tmp_path / tool).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="copy its directory"):
        build(tmp_path / "image", print)
    (tmp_path / "qemu-img").unlink()
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(ConfigError, match="apt-get install qemu-utils"):
        build(tmp_path / "image", print)


def test_an_archive_out_of_reach_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conveyor_runtime.errors import BackendUnavailable
    from conveyor_runtime.orchestra.qemu.image import packages

    def refuse(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 100, "", "E: Failed to fetch\n")

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(BackendUnavailable, match="Failed to fetch"):
        packages.fetch([packages.Package("a.deb", 1, "")], ["a"], tmp_path, print)


def test_images_by_name(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound, match="conveyor image build qemu"):
        find_image("", tmp_path)
    with pytest.raises(ImageNotFound, match="busybox"):
        find_image("busybox:latest", tmp_path)
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"QFI\xfb....")
    assert find_image(str(disk), tmp_path).disk_format == "qcow2"
    first = find_image(str(disk), tmp_path).digest
    disk.write_bytes(b"another")
    assert find_image(str(disk), tmp_path).disk_format == "raw"
    assert find_image(str(disk), tmp_path).digest != first
