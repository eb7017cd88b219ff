"""Machines that were booted once and frozen, to be taken up any number of times.

    <directory>/<key>/{memory,state,disk.qcow2,overlay.qcow2,frozen}

`memory` is mapped copy-on-write by every machine taken up from it, `disk.qcow2` is what the frozen one had written and
`overlay.qcow2` an empty disk over it, to be copied. None of them is written again. `frozen` makes it whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from pathlib import Path

from conveyor_runtime.orchestra.base import Progress
from conveyor_runtime.orchestra.qemu.disk import make_overlay
from conveyor_runtime.orchestra.qemu.machine import DISK, Export, Machine
from conveyor_runtime.orchestra.qemu.sockets import locked
from conveyor_runtime.orchestra.qemu.vm import Vm

__all__ = ["Templates"]

_UNUSED = 14 * 86400.0  # seconds


class Templates:
    """The frozen machines in one directory, which several processes may use."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, machine: Machine) -> Path | None:
        """The frozen machine, if there is one."""
        place = self._directory / machine.key
        try:
            os.utime(place / "frozen")
        except OSError:
            return None
        return place

    async def get(self, machine: Machine, on_progress: Progress) -> Path:
        """The frozen machine; made if there is none, which takes one boot. Raises what booting does."""
        found = self.find(machine)
        if found is not None:
            return found
        place = self._directory / machine.key
        async with locked(self._directory / f"{machine.key}.lock"):
            found = self.find(machine)
            if found is None:
                await on_progress(f"booting {machine.image.name} once, to freeze it ({machine.accelerator[0]})")
                await self._make(machine, place)
        self._prune()
        return place

    async def _make(self, machine: Machine, place: Path) -> None:
        await asyncio.to_thread(_make_anew, place)
        exports = tuple(Export(f"host{n}", str(place), read_only=True) for n in range(machine.exports))
        try:
            vm = await Vm.boot(machine, place, memory=place / "memory", exports=exports)
            try:
                await vm.freeze(place / "state")
            finally:
                await vm.kill()
                vm.close()
            await make_overlay(place / DISK, "qcow2", place / "overlay.qcow2")
            (place / "frozen").touch()
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise

    def _prune(self) -> None:
        """Drop what nobody has used for long: each newer image or qemu makes others. Who still runs on one has its
        files open."""
        for mark in self._directory.glob("*/frozen"):
            with contextlib.suppress(OSError):
                if time.time() - mark.stat().st_mtime > _UNUSED:
                    shutil.rmtree(mark.parent, ignore_errors=True)


def _make_anew(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
