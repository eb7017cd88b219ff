"""What a machine consists of, as an argument list for qemu."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conveyor_runtime.orchestra.qemu import agent, monitor, scripts
from conveyor_runtime.orchestra.qemu.accel import Accelerator
from conveyor_runtime.orchestra.qemu.images import Image

__all__ = ["CONSOLE", "DISK", "PID", "SEED", "SHARE", "Export", "Machine"]

SHARE = "share"
"""Directory of a machine that its guest sees, and the tag by which it does."""
CONSOLE, DISK, PID, SEED = "console.log", "disk.qcow2", "pid", "seed.iso"

# The last four spare work: none of them guards the host. Expedited, a change of cgroups or mounts does not wait for
# the next ticks of the clock.
_KERNEL = "console=ttyS0 quiet loglevel=1 panic=-1 cryptomgr.notests init_on_alloc=0 lsm= rcupdate.rcu_expedited=1"
# An emulated processor does not speculate; what guards against it takes half of its time.
_EMULATED = " mitigations=off"


@dataclass(frozen=True)
class Export:
    """A directory of the host that the guest may mount by `tag`."""

    tag: str
    source: str
    read_only: bool


@dataclass(frozen=True)
class Machine:
    """Everything that must be the same for a frozen machine to be taken up again."""

    image: Image
    accelerator: Accelerator
    version: str
    """Of qemu."""
    memory_mib: int
    cpus: int
    network: bool
    """Whether it has qemu's user-mode network; else it has no network card at all."""
    share_model: str
    """How 9p keeps owners and modes on the host."""
    exports: int = 0
    """How many directories of the host it can mount beside its share."""

    @property
    def key(self) -> str:
        """Names what may take up whose frozen state."""
        described: dict[str, Any] = asdict(self)
        described["image"] = self.image.digest
        described["settled by"] = scripts.BOOT
        described["frozen"] = "as it ran"  # and so it goes on by itself
        described["arguments"] = self.arguments(Path("/"), memory=None, exports=(Export("", "", True),) * self.exports)
        return hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()[:24]

    def arguments(
        self, directory: Path, *, memory: tuple[Path, bool] | None, exports: tuple[Export, ...] = ()
    ) -> list[str]:
        """What follows the name of the program, for a machine that has its files in `directory`.

        `memory` = a file to keep the memory in, and whether what the guest writes goes into it; None = no file.
        Sockets have names relative to `directory`, where qemu is to be started: their length is limited.
        """
        accel, cpu = self.accelerator
        backing = ",memory-backend=m0" if memory else ""
        words = ["-machine", f"q35{backing}", "-accel", accel, "-cpu", cpu]
        words += ["-smp", str(self.cpus), "-m", str(self.memory_mib)]
        if memory:
            file, shared = memory
            where = f"mem-path={_quoted(file)},share={'on' if shared else 'off'}"
            words += ["-object", f"memory-backend-file,id=m0,size={self.memory_mib}M,{where}"]
        words += ["-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"]
        words += ["-serial", f"file:{CONSOLE}", "-device", "vmgenid,guid=auto"]
        words += ["-qmp", f"unix:{monitor.SOCKET},server=on,wait=off", "-device", "virtio-serial-pci"]
        words += ["-chardev", f"pipe,id=agent,path={agent.PORT}"]
        words += ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]
        words += _disk("disk0", directory / DISK, "format=qcow2,cache=unsafe,discard=unmap")
        if self.image.kernel and self.image.initrd:
            words += ["-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd), "-append"]
            words.append(_KERNEL + (_EMULATED if accel == "tcg" else ""))
        else:
            words += _disk("seed0", directory / SEED, "format=raw,readonly=on")
        share = Export(SHARE, str(directory / SHARE), read_only=False)
        words += _export(share, self.share_model)
        for export in exports:
            words += _export(export, "none")
        if self.network:
            words += ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0"]
        return words


def _disk(name: str, file: Path, options: str) -> list[str]:
    return ["-drive", f"id={name},if=none,file={_quoted(file)},{options}", "-device", f"virtio-blk-pci,drive={name}"]


def _export(export: Export, model: str) -> list[str]:
    only = ",readonly=on" if export.read_only else ""
    options = f"id={export.tag},path={_quoted(export.source)},security_model={model}{only},multidevs=remap"
    return ["-fsdev", f"local,{options}", "-device", f"virtio-9p-pci,fsdev={export.tag},mount_tag={export.tag}"]


def _quoted(path: Path | str) -> str:
    """A value in qemu's own key=value,... notation."""
    return os.fspath(path).replace(",", ",,")
