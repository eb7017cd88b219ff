"""The machines of all namespaces of one root: found, started, ended."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
from pathlib import Path

from conveyor_runtime.errors import BackendError, TerminalError
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.orchestra import execs
from conveyor_runtime.orchestra.base import Progress
from conveyor_runtime.orchestra.qemu import process
from conveyor_runtime.orchestra.qemu.layout import Layout, VmMeta
from conveyor_runtime.orchestra.qemu.machine import SHARE
from conveyor_runtime.orchestra.qemu.machines import Machines, check_fits, exports_of
from conveyor_runtime.orchestra.qemu.templates import Templates
from conveyor_runtime.orchestra.qemu.vm import Vm
from conveyor_runtime.orchestra.task import Task

__all__ = ["Fleet"]

log = logging.getLogger(__name__)


class Fleet:
    """Machines by namespace. Whoever starts or ends one holds the namespace's lock."""

    def __init__(self, layout: Layout, images: Path) -> None:
        self._layout = layout
        self._machines = Machines(layout.root, images)
        self._templates = Templates(images / "templates")
        self._known: dict[str, Vm] = {}

    async def prepare(self, task: Task, on_progress: Progress) -> str:
        """Have a frozen machine of what the task asks for; the digest of its image."""
        exports_of(task)
        machine = await self._machines.describe(task)
        await self._templates.get(machine, on_progress)
        return machine.image.digest

    def find(self, ns: str) -> tuple[Vm, VmMeta] | None:
        """The machine of the namespace, if one lives that is ready for tasks."""
        meta = self._layout.read_vm(ns)
        if meta is None:
            return None
        known = self._known.get(ns)
        if known is None or not known.alive:
            self._drop(ns)
            known = Vm.find(self._layout.vm(ns))
            if known is None:
                return None
            self._known[ns] = known
        return known, meta

    async def ensure(self, ns: str, task: Task) -> tuple[Vm, VmMeta]:
        """The machine of the namespace, started if it does not live. Raises `TerminalError` if it is there, has other
        tasks, and cannot be what this one asks for."""
        found = self.find(ns)
        if found is not None:
            try:
                check_fits(task, self._machines.image(task), found[1])
                return found
            except TerminalError:
                if self._layout.tasks(ns):
                    raise
        return await finish(self._start(ns, task))

    async def end(self, ns: str, grace: float) -> None:
        """End it, after what runs in it got SIGTERM and `grace` seconds."""
        found = self.find(ns)
        if found is not None and grace > 0:
            vm, tasks = found[0], self._layout.tasks(ns)
            try:
                await execs.end(lambda signal: vm.guest.sweep(tasks, signal), grace)
            except BackendError as error:
                # A guest that does not answer is ended all the same.
                log.warning("cannot quiet %s: %s", ns, error, extra={"action": "namespace_unquiet"})
        await self._kill(ns)

    def close(self) -> None:
        """Stop watching them. They go on."""
        for ns in list(self._known):
            self._drop(ns)

    async def _start(self, ns: str, task: Task) -> tuple[Vm, VmMeta]:
        exports = exports_of(task)
        machine = await self._machines.describe(task)
        frozen = await self._templates.get(machine, _say_nothing)
        directory = self._layout.vm(ns)
        if directory.exists():
            await self._kill(ns)  # one that somebody began with and did not finish
        await asyncio.to_thread(_clear, directory)
        try:
            vm = await Vm.take_up(machine, directory, frozen, exports=exports, name=ns)
        except BackendError as error:
            log.warning("a frozen machine cannot be taken up: %s", error, extra={"action": "vm_thaw_failed"})
            await asyncio.to_thread(_clear, directory)
            vm = await Vm.boot(machine, directory, exports=exports, name=ns)
        self._known[ns] = vm
        try:
            await vm.guest.set_clock()
        except BaseException:
            await self._kill(ns)
            raise
        told = [[export.tag, export.source, export.read_only] for export in exports]
        meta = VmMeta(secrets.token_hex(8), machine.image.digest, machine.network, machine.memory_mib, told)
        self._layout.write_vm(ns, meta)
        return vm, meta

    async def _kill(self, ns: str) -> None:
        directory = self._layout.vm(ns)
        vm = self._known.get(ns) or Vm.find(directory)
        if vm is not None:
            await vm.kill()
            vm.close()
            self._known.pop(ns, None)
        await asyncio.to_thread(process.kill_strays, directory)

    def _drop(self, ns: str) -> None:
        known = self._known.pop(ns, None)
        if known is not None:
            known.close()


def _clear(directory: Path) -> None:
    """Make it without anything of an earlier machine but what was shared with it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in directory.iterdir():
        if path.name == SHARE:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


async def _say_nothing(_: str) -> None: ...
