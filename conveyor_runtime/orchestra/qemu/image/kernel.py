"""The kernel of a Debian package in the form that boots fastest, and the modules a guest needs."""

from __future__ import annotations

import lzma
import re
from collections.abc import Sequence
from pathlib import Path

from conveyor_runtime.errors import BackendError

__all__ = ["MODULES", "bootable", "modules"]

#: What the guest's own devices and file systems need.
MODULES = (
    *("virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "9pnet_virtio", "9p"),
    *("crc32c_generic", "ext4", "isofs", "overlay"),
)

_XZ = b"\xfd7zXZ\0"
_ELF = b"\x7fELF"


def bootable(compressed: bytes) -> bytes:
    """The kernel proper inside a compressed image, which qemu boots directly; without an accelerator unpacking it in
    the guest takes half of the boot. The image itself if it is not packed by xz: that boots as well, only later."""
    at = compressed.find(_XZ)
    while at != -1:
        try:
            unpacked = lzma.LZMADecompressor().decompress(compressed[at:])
        except lzma.LZMAError:
            unpacked = b""
        if unpacked.startswith(_ELF):
            return unpacked
        at = compressed.find(_XZ, at + 1)
    return compressed


def modules(root: Path, names: Sequence[str] = MODULES) -> list[Path]:
    """The files of these modules and of all they need, each after what it needs.

    Dependencies are read from the modules themselves. A name without a file is built in, or absent from this kernel.
    """
    files = {path.stem.replace("-", "_"): path for path in root.rglob("*.ko")}
    if not files:
        raise BackendError(f"the kernel package has no modules that can be read below {root}")
    order: list[Path] = []

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or path in order:
            return
        content = path.read_bytes()
        for key in (rb"softdep=pre: ", rb"depends="):
            for found in re.findall(rb"\0" + key + rb"([^\0]*)", b"\0" + content):
                for needed in re.split(r"[ ,]+", found.decode()):
                    add(needed)
        order.append(path)

    for name in names:
        add(name)
    return order
