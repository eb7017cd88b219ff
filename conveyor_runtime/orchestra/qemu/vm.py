"""One machine: booted or taken up from its frozen state, used, ended."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Self

from conveyor_runtime.errors import BackendError, Gone, TerminalError
from conveyor_runtime.orchestra.qemu import agent, process
from conveyor_runtime.orchestra.qemu.disk import make_overlay
from conveyor_runtime.orchestra.qemu.guest import Guest
from conveyor_runtime.orchestra.qemu.machine import DISK, SEED, SHARE, Export, Machine
from conveyor_runtime.orchestra.qemu.monitor import monitor
from conveyor_runtime.orchestra.qemu.port import make_pipes
from conveyor_runtime.orchestra.qemu.process import Process
from conveyor_runtime.orchestra.qemu.seed import write_seed

__all__ = ["BINARY", "JOBS", "VOLUMES", "Vm"]

BINARY = "qemu-system-x86_64"

JOBS, VOLUMES = "jobs", "volumes"
"""Directories of the share."""

_BOOT = {"kvm": 60.0, "tcg": 300.0}
"""Seconds until the agent answers; a whole distribution takes half a minute without an accelerator."""
_WAKE = 15.0
_ENDING = 1.0  # seconds from when qemu closes its files until it has ended


class Vm:
    """A living machine. Any number of these objects, in any process, may stand for the same one. Close it."""

    def __init__(self, directory: Path, running: Process) -> None:
        self.directory = directory
        self.guest = Guest(directory)
        self.share = directory / SHARE
        self._process = running

    @classmethod
    def find(cls, directory: Path) -> Self | None:
        """The machine of this directory, None if it does not live."""
        running = process.find(directory)
        return None if running is None else cls(directory, running)

    @classmethod
    async def boot(
        cls,
        machine: Machine,
        directory: Path,
        *,
        memory: Path | None = None,
        exports: tuple[Export, ...] = (),
        name: str = "conveyor",
    ) -> Self:
        """Boot a machine with a fresh disk in an existing directory; returns when its agent answers.

        `memory` = a file to hold its memory, for a machine to be frozen. Raises `TerminalError` for an image without a
        guest agent, `BackendError` if qemu or the guest ends meanwhile.
        """
        await make_overlay(machine.image.disk, machine.image.disk_format, directory / DISK)
        cls._furnish(machine, directory, name)
        arguments = machine.arguments(directory, memory=(memory, True) if memory else None, exports=exports)
        vm = cls(directory, await process.start(BINARY, arguments, directory))
        try:
            timeout, image = _BOOT[machine.accelerator[0]], machine.image.name
            if not await vm._answers(timeout):
                raise TerminalError(
                    f"no guest agent answers in {image} within {timeout:g} s: install qemu-guest-agent in it"
                )
            await vm.guest.settle()
        except BaseException:
            await vm.kill()
            vm.close()
            raise
        return vm

    @classmethod
    async def take_up(
        cls,
        machine: Machine,
        directory: Path,
        frozen: Path,
        *,
        exports: tuple[Export, ...] = (),
        name: str = "conveyor",
    ) -> Self:
        """A machine that goes on where the frozen one in `frozen` stopped, on a copy of its disk and memory that is
        made as it is written to. Raises `BackendError` if it does not go on."""
        shutil.copyfile(frozen / "overlay.qcow2", directory / DISK)
        cls._furnish(machine, directory, name)
        arguments = machine.arguments(directory, memory=(frozen / "memory", False), exports=exports)
        with (frozen / "state").open("rb") as state:
            handle = state.fileno()
            vm = cls(directory, await process.start(BINARY, [*arguments, "-incoming", "defer"], directory, [handle]))
        try:
            async with monitor(directory) as control:
                await control.restore(handle)
            if not await vm._answers(_WAKE):
                raise BackendError(f"{machine.image.name} does not go on within {_WAKE:g} s")
        except BaseException:
            await vm.kill()
            vm.close()
            raise
        return vm

    @property
    def alive(self) -> bool:
        """Whether qemu runs."""
        return not self._process.ended.is_set()

    async def ended(self) -> None:
        """Return as soon as qemu has ended."""
        await self._process.ended.wait()

    def gone(self) -> Gone:
        """The error for a machine that has ended while something was wanted of it."""
        said = self._process.last_words()
        return Gone(f"the machine {self.directory.name} has ended{f'; its console says: {said}' if said else ''}")

    async def kill(self) -> None:
        """End it at once: what its disk holds is thrown away anyway."""
        await self._process.kill()

    def close(self) -> None:
        """Stop watching it. It goes on."""
        self._process.close()

    async def freeze(self, state: Path) -> None:
        """Write the state of its devices and end it. Nothing of the share may be mounted."""
        async with monitor(self.directory) as control:
            await control.save(state)
            await control.ask("quit")
        await self._process.ended.wait()

    @staticmethod
    def _furnish(machine: Machine, directory: Path, name: str) -> None:
        make_pipes(directory, agent.PORT)
        for part in (JOBS, VOLUMES):
            (directory / SHARE / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        if machine.image.kernel is None:
            write_seed(directory / SEED, name)

    async def _answers(self, timeout: float) -> bool:
        """Whether its agent does within that. Raises `BackendError` if it ends meanwhile."""
        answer = asyncio.ensure_future(self.guest.agent.answers(timeout))
        end = asyncio.ensure_future(self._process.ended.wait())
        try:
            await asyncio.wait([answer, end], return_when=asyncio.FIRST_COMPLETED)
            if answer.done() and answer.exception() is None:
                return True
            await asyncio.wait([end], timeout=_ENDING)
            if not self.alive:
                raise BackendError(str(self.gone()))
            return False
        finally:
            answer.cancel()
            end.cancel()
            await asyncio.wait([answer, end])
            if not answer.cancelled():
                answer.exception()  # what became of it is told above
