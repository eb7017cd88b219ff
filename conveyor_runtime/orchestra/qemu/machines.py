"""Which machine a namespace gets: from what its first task asks for, and whether later ones fit into it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from conveyor_runtime.errors import TerminalError
from conveyor_runtime.orchestra.qemu import accel, process
from conveyor_runtime.orchestra.qemu.images import Image, find_image
from conveyor_runtime.orchestra.qemu.layout import VmMeta
from conveyor_runtime.orchestra.qemu.machine import Export, Machine
from conveyor_runtime.orchestra.qemu.vm import BINARY
from conveyor_runtime.orchestra.task import Task

__all__ = ["USER_NETWORK", "Machines", "check_fits", "exports_of"]

USER_NETWORK = "user"
"""The network a task may name: the guest reaches out through the host, nothing reaches in."""

_MEMORY_MIB = 512
_OWN_MIB = 128
"""What the guest's own kernel and agent need beside a task's limit."""
_STEP_MIB = 256
_MOST_CPUS = 4


class Machines:
    """Makes descriptions of machines for one root and one directory of images."""

    def __init__(self, root: Path, images: Path) -> None:
        self._root = root
        self._images = images

    def image(self, task: Task) -> Image:
        """What it boots. Raises `ImageNotFound`."""
        return find_image(task.image, self._images)

    async def describe(self, task: Task) -> Machine:
        """The machine that a namespace gets whose first task this is."""
        image = self.image(task)
        version = await asyncio.to_thread(process.version_of, BINARY)
        found = await accel.probe(BINARY, version, self._images)
        return Machine(
            image=image,
            accelerator=found,
            version=version,
            memory_mib=_memory(task),
            cpus=_cpus(task, emulated=found[0] == "tcg"),
            network=task.network == USER_NETWORK,
            share_model="mapped-xattr" if _keeps_attributes(self._root) else "mapped-file",
            exports=len(task.host_mounts),
        )


def exports_of(task: Task) -> tuple[Export, ...]:
    """The directories of the host that its machine can mount: these and no others."""
    for mount in task.host_mounts:
        if not Path(mount.source).is_dir():
            raise TerminalError(f"the qemu backend can mount a directory of the host, and {mount.source} is none")
    return tuple(Export(f"host{n}", mount.source, mount.read_only) for n, mount in enumerate(task.host_mounts))


def check_fits(task: Task, image: Image, meta: VmMeta) -> None:
    """Raise `TerminalError` if the machine of the namespace cannot be what this task asks for: there is only one."""
    if image.digest != meta.image:
        raise TerminalError(f"the machine of this namespace runs another image than {image.name}")
    if (task.network == USER_NETWORK) > meta.network or (task.network == "none" and meta.network):
        has = "a network" if meta.network else "no network"
        raise TerminalError(f"the machine of this namespace has {has}, and the task asks for {task.network!r}")
    if _memory(task) > max(meta.memory_mib, _MEMORY_MIB):
        raise TerminalError(f"the machine of this namespace has {meta.memory_mib} MiB, too little for the task's limit")
    there = {(source, read_only) for _, source, read_only in meta.exports}
    for mount in task.host_mounts:
        if (mount.source, mount.read_only) not in there:
            raise TerminalError(f"the machine of this namespace was started without the host's {mount.source}")


def _memory(task: Task) -> int:
    """Enough for its limit; in steps, so that not every limit makes a frozen machine of its own."""
    wanted = task.limits.memory_bytes / 2**20 + _OWN_MIB
    return max(_MEMORY_MIB, -(-int(wanted) // _STEP_MIB) * _STEP_MIB)


def _cpus(task: Task, *, emulated: bool) -> int:
    """As many as its limit asks for. Without one, as the host has; emulated ones cost more in talk than they bring."""
    wanted = -(-task.limits.cpu_milli // 1000) or (1 if emulated else _MOST_CPUS)
    return min(wanted, os.cpu_count() or 1)


def _keeps_attributes(directory: Path) -> bool:
    """Whether the file system keeps extended attributes of users."""
    try:
        os.setxattr(directory, "user.conveyor", b"1")
        os.removexattr(directory, "user.conveyor")
    except OSError:
        return False
    return True
