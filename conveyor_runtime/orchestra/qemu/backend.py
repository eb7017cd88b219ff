"""The qemu backend: one machine for each namespace, started when something is first started in it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from conveyor_runtime.errors import BackendError, Gone, TerminalError
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.orchestra import execs
from conveyor_runtime.orchestra.base import Prepared, Progress
from conveyor_runtime.orchestra.checks import check_sandbox
from conveyor_runtime.orchestra.names import check_task_id, run_of
from conveyor_runtime.orchestra.native.layout import node_name, open_root
from conveyor_runtime.orchestra.native.retiring import remove_tree
from conveyor_runtime.orchestra.qemu import scripts
from conveyor_runtime.orchestra.qemu.container import QemuContainer
from conveyor_runtime.orchestra.qemu.fleet import Fleet
from conveyor_runtime.orchestra.qemu.jobs import Job
from conveyor_runtime.orchestra.qemu.layout import Layout, TaskMeta, VmMeta, VolumeMeta
from conveyor_runtime.orchestra.qemu.machine import SHARE
from conveyor_runtime.orchestra.qemu.requests import check_kept, meta_of, task_words
from conveyor_runtime.orchestra.qemu.sandbox import PATH, QemuSandbox
from conveyor_runtime.orchestra.qemu.sockets import locked
from conveyor_runtime.orchestra.qemu.vm import VOLUMES, Vm
from conveyor_runtime.orchestra.qemu.volume import QemuVolume
from conveyor_runtime.orchestra.status import NamespaceInfo
from conveyor_runtime.orchestra.task import Owner, Task

__all__ = ["QemuBackend"]


class QemuBackend:
    """See `conveyor_runtime.orchestra.base.Backend` and `capabilities.Sandboxes`.

    All tasks of a namespace share one machine, each with mounts, cgroup and workspace of its own. In it a task is
    privileged whether it asks or not: the wall is the machine's.
    """

    name = "qemu"

    def __init__(self, root: Path, images: Path, host_paths: tuple[Path, ...] = ()) -> None:
        """`root` is made if it is not there, `images` is where `conveyor image build qemu` put its guest. Raises
        `ConfigError` if `root` is not this user's alone."""
        self._layout = Layout(open_root(root))
        self._fleet = Fleet(self._layout, images)
        self._host_paths = host_paths
        self.storage = root
        self.node = node_name(self._layout.root).replace("native-", "qemu-", 1)

    async def prepare(self, task: Task, on_progress: Progress) -> Prepared:
        """See the contract. The first time, a machine like the task's is booted and frozen."""
        check_kept(task, self._host_paths, sandbox=True)
        return Prepared(await self._fleet.prepare(task, on_progress))

    async def start_sandbox(self, ns: str, task: Task, owner: Owner) -> QemuSandbox:
        """See the contract."""
        check_sandbox(task)
        check_kept(task, self._host_paths, sandbox=True)
        async with locked(self._layout.lock(ns)):
            self._check_kind(ns, task.id, sandbox=True)
            found = self._running(ns, task.id)
            if found is None:
                vm, machine = await self._begin(ns, task, owner)
                meta = meta_of(task, owner, machine)
                self._layout.write_task(ns, task.id, meta)
                found = vm, meta
        return self._sandbox(ns, task.id, *found)

    async def get_sandbox(self, ns: str, task_id: str) -> QemuSandbox:
        """See the contract."""
        check_task_id(task_id)
        found = self._running(ns, task_id)
        if found is None or found[1].job:
            raise Gone(f"there is no qemu sandbox {task_id} in {ns}")
        return self._sandbox(ns, task_id, *found)

    async def run(self, ns: str, task: Task, owner: Owner) -> QemuContainer:
        """See the contract."""
        check_kept(task, self._host_paths)
        async with locked(self._layout.lock(ns)):
            self._check_kind(ns, task.id, sandbox=False)
            if self._layout.read_task(ns, task.id) is None:
                await finish(self._run(ns, task, owner))
        return await self.get(ns, task.id)

    async def get(self, ns: str, task_id: str) -> QemuContainer:
        """See the contract."""
        meta = self._layout.read_task(ns, task_id)
        if meta is None or not meta.job:
            raise Gone(f"there is no qemu container {task_id} in {ns}")
        found = self._fleet.find(ns)
        vm = found[0] if found is not None and found[1].boot == meta.boot else None
        share = self._layout.vm(ns) / SHARE
        return QemuContainer(
            ns, task_id, meta, share, vm, self._is_there(ns, task_id, meta), self._remover(ns, task_id)
        )

    async def create_volume(self, ns: str, name: str, owner: Owner, *, size_bytes: int = 0) -> QemuVolume:
        """See the contract; a size cannot be kept and is refused."""
        if size_bytes:
            raise TerminalError("the qemu backend cannot limit the size of a volume")
        async with locked(self._layout.lock(ns)):
            self._make_volume(ns, check_task_id(name), owner)
        return self.volume(ns, name)

    def volume(self, ns: str, name: str) -> QemuVolume:
        """The volume of that name, whether it is there or not."""
        return QemuVolume(name, lambda: self._machine_for(ns, name), lambda: self._remove_volume(ns, name))

    async def close_namespace(self, ns: str, *, grace: float = 10.0) -> None:
        """See the contract."""
        home = self._layout.home(ns)
        if home.is_dir():
            async with locked(self._layout.lock(ns)):
                await finish(self._fleet.end(ns, grace))
                left = await asyncio.to_thread(self._layout.remove, ns)
        else:
            left = await asyncio.to_thread(self._layout.remove, ns)
        if left:
            raise BackendError(f"{ns}: cannot remove {', '.join(map(str, left))}")

    async def namespaces(self, installation: str) -> list[NamespaceInfo]:
        """See the contract."""
        try:
            found = await asyncio.to_thread(lambda: list(self._layout.namespaces()))
        except OSError as error:
            raise BackendError(f"cannot list {self._layout.root}: {error}") from error
        infos = []
        for ns, metas, changed in found:
            if not metas:
                # Nobody can say any more whose it was but its name, and that only for runs as our engine names them.
                if run_id := run_of(installation, ns):
                    infos.append(NamespaceInfo(ns, run_id, changed))
            elif all(meta.owner.installation == installation for meta in metas):
                owners = tuple(dict.fromkeys(meta.owner for meta in metas))
                infos.append(NamespaceInfo(ns, owners[0].run_id, max(meta.created_at for meta in metas), owners))
        return infos

    async def close(self) -> None:
        """See the contract."""
        self._fleet.close()

    def _check_kind(self, ns: str, task_id: str, *, sandbox: bool) -> None:
        meta = self._layout.read_task(ns, task_id)
        if meta is not None and sandbox == bool(meta.job):
            raise TerminalError(f"{task_id} of {ns} is there already, as a {'container' if sandbox else 'sandbox'}")

    async def _begin(self, ns: str, task: Task, owner: Owner) -> tuple[Vm, VmMeta]:
        """Have the machine, and in it what a task needs before its first command."""
        vm, machine = await self._fleet.ensure(ns, task)
        for mount in task.mounts:
            self._make_volume(ns, mount.volume, owner)
        await finish(vm.guest.run(scripts.WAKE + scripts.TASK, *task_words(task, machine)))
        return vm, machine

    async def _run(self, ns: str, task: Task, owner: Owner) -> None:
        vm, machine = await self._begin(ns, task, owner)
        # A name of its own each time: who watched over an earlier one may still be tidying up.
        name = execs.new_nonce()
        job = Job(vm.share, task.id, name)
        await job.make(task.stdin)
        marks = {execs.SANDBOX_MARK: ns}
        env = {"PATH": PATH, "LANG": "C.UTF-8", **task.env, **marks}
        command = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", task.workdir, *task.command]
        watcher = await job.start(
            vm, command, env=env, user=task.user, timeout=task.timeout, grace=task.grace, whole=True
        )
        self._layout.write_task(ns, task.id, meta_of(task, owner, machine, name, watcher))

    def _make_volume(self, ns: str, name: str, owner: Owner) -> None:
        if self._layout.read_volume(ns, name) is None:
            (self._layout.vm(ns) / SHARE / VOLUMES / name).mkdir(parents=True, exist_ok=True)
            self._layout.write_volume(ns, name, VolumeMeta(owner, datetime.now(UTC)))

    async def _machine_for(self, ns: str, volume: str) -> Vm:
        """The machine of the namespace, to get at the volume."""
        if not self._layout.home(ns).is_dir():
            raise Gone(f"volume {volume} was removed")
        async with locked(self._layout.lock(ns)):
            if self._layout.read_volume(ns, volume) is None:
                raise Gone(f"volume {volume} was removed")
            found = self._fleet.find(ns) or await self._fleet.ensure(ns, Task(id="volumes"))
            return found[0]

    async def _remove_volume(self, ns: str, name: str) -> None:
        if not self._layout.home(ns).is_dir():
            return
        async with locked(self._layout.lock(ns)):
            for task_id in self._layout.tasks(ns):
                meta = self._layout.read_task(ns, task_id)
                if meta is not None and name in meta.volumes and self._running(ns, task_id) is not None:
                    raise BackendError(f"volume {name} is in use by {task_id}")
            self._layout.forget_volume(ns, name)
            await asyncio.to_thread(remove_tree, self._layout.vm(ns) / SHARE / VOLUMES / name)

    def _remover(self, ns: str, task_id: str) -> Callable[[], Awaitable[None]]:
        async def remove() -> None:
            if self._layout.read_task(ns, task_id) is None:
                return
            async with locked(self._layout.lock(ns)):
                await finish(self._remove(ns, task_id))

        return remove

    async def _remove(self, ns: str, task_id: str) -> None:
        found, meta = self._running(ns, task_id), self._layout.read_task(ns, task_id)
        if found is not None:
            vm = found[0]
            if await vm.guest.run(scripts.REMOVE, task_id):  # most have ended long ago
                await execs.end(lambda signal: vm.guest.sweep([task_id], signal), 0)
                await vm.guest.run(scripts.REMOVE, task_id)
        self._layout.forget_task(ns, task_id)
        if meta is not None and meta.job:
            await asyncio.to_thread(Job(self._layout.vm(ns) / SHARE, task_id, meta.job).remove)

    def _running(self, ns: str, task_id: str) -> tuple[Vm, TaskMeta] | None:
        """The task with the machine it was started in, if that lives."""
        meta = self._layout.read_task(ns, task_id)
        found = self._fleet.find(ns)
        if meta is None or found is None or found[1].boot != meta.boot:
            return None
        return found[0], meta

    def _is_there(self, ns: str, task_id: str, meta: TaskMeta) -> Callable[[], bool]:
        def is_there() -> bool:
            now = self._layout.read_task(ns, task_id)
            return now is not None and now.created_at == meta.created_at

        return is_there

    def _sandbox(self, ns: str, task_id: str, vm: Vm, meta: TaskMeta) -> QemuSandbox:
        return QemuSandbox(ns, task_id, meta, vm, self._is_there(ns, task_id, meta), self._remover(ns, task_id))
