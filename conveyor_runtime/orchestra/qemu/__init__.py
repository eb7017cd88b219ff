"""The qemu backend: every namespace is a virtual machine, and the wall between runs is the machine's.

Its image is the small guest of `conveyor image build qemu`, or a disk of the user's own.
"""

import asyncio
import shutil

from conveyor_runtime.errors import BackendUnavailable
from conveyor_runtime.orchestra.base import Backend
from conveyor_runtime.orchestra.native.layout import default_root
from conveyor_runtime.orchestra.qemu.backend import QemuBackend
from conveyor_runtime.orchestra.qemu.images import default_directory
from conveyor_runtime.orchestra.qemu.vm import BINARY
from conveyor_runtime.orchestra.registry import BackendSettings

__all__ = ["QemuBackend", "open_backend"]


async def open_backend(settings: BackendSettings) -> Backend:
    """For the registry. Its root lies beside the native one's: `-qemu` is put behind that name."""
    if shutil.which(BINARY) is None:
        raise BackendUnavailable(f"there is no {BINARY}; apt-get install qemu-system-x86 qemu-utils")
    beside = settings.native_root or default_root()
    root = beside.with_name(f"{beside.name}-qemu")
    return await asyncio.to_thread(QemuBackend, root, default_directory(), settings.host_paths)
