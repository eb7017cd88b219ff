"""What a machine boots: the small guest that `conveyor image build qemu` made, or a disk of the user's own."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from conveyor_runtime.errors import BackendError, ImageNotFound

__all__ = ["SMALL", "Image", "default_directory", "find_image"]

SMALL = "small"
"""The name of the guest that is built."""

_MAGIC = {b"QFI\xfb": "qcow2"}


@dataclass(frozen=True)
class Image:
    """`disk` is never written. Without `kernel` and `initrd` the firmware boots from it."""

    name: str
    digest: str
    """Names the content: another one for other content."""
    disk: Path
    disk_format: str
    kernel: Path | None = None
    initrd: Path | None = None


def default_directory() -> Path:
    """Where the small guest and the frozen machines are kept: CONVEYOR_QEMU_IMAGES, or else `conveyor/qemu` in the
    user's cache directory."""
    if chosen := os.environ.get("CONVEYOR_QEMU_IMAGES"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "conveyor" / "qemu"


def find_image(reference: str, directory: Path) -> Image:
    """The image a task names: `small` or nothing, or the absolute path of a qcow2 or raw disk.

    Raises `ImageNotFound` if it is not there.
    """
    if reference in ("", SMALL):
        return _small(directory)
    if not reference.startswith("/"):
        raise ImageNotFound(
            f"the qemu backend boots {SMALL!r} or a disk by its absolute path, and {reference!r} is neither"
        )
    return _disk(Path(reference))


def _small(directory: Path) -> Image:
    try:
        key = str(json.loads((directory / "image.json").read_text())["key"])
    except FileNotFoundError as error:
        raise ImageNotFound(f"there is no guest image in {directory}: run conveyor image build qemu") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackendError(f"the guest image in {directory} cannot be read: {error}") from error
    disk, kernel, initrd = (directory / name for name in ("disk.qcow2", "vmlinux", "initrd"))
    return Image(SMALL, key, disk, "qcow2", kernel, initrd)


def _disk(path: Path) -> Image:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            found = os.fstat(file.fileno())
    except OSError as error:
        raise ImageNotFound(f"the disk {path} cannot be read: {error.strerror}") from error
    # Hashing gigabytes at every start is too dear; a file that was changed has another time or size or is another file.
    told = f"{path.resolve()} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
    return Image(str(path), hashlib.sha256(told.encode()).hexdigest(), path.resolve(), _MAGIC.get(magic, "raw"))
