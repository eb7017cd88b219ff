"""One container of a machine: a job whose directory stays until it is cleaned up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from conveyor_runtime.errors import BackendError, Gone
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.orchestra import execs
from conveyor_runtime.orchestra.qemu import scripts
from conveyor_runtime.orchestra.qemu.jobs import Job
from conveyor_runtime.orchestra.qemu.layout import TaskMeta
from conveyor_runtime.orchestra.qemu.usage import Meter
from conveyor_runtime.orchestra.qemu.vm import Vm
from conveyor_runtime.orchestra.status import ContainerStatus, OnOutput, OnStat

__all__ = ["QemuContainer"]

_SAMPLE = 1.0  # seconds


class QemuContainer:
    """See `conveyor_runtime.orchestra.base.Container`."""

    def __init__(
        self,
        ns: str,
        task_id: str,
        meta: TaskMeta,
        share: Path,
        vm: Vm | None,
        is_there: Callable[[], bool],
        remove: Callable[[], Awaitable[None]],
    ) -> None:
        """`vm` is None when it has ended; what it said of the container's end is still there."""
        self._id = f"{ns}.{task_id}"
        self._meta = meta
        self._vm = vm
        self._task_id = task_id
        self._job = Job(share, task_id, meta.job)
        self._is_there = is_there
        self._remove = remove
        self._last: ContainerStatus | None = None

    @property
    def id(self) -> str:
        return self._id

    async def status(self) -> ContainerStatus:
        """See the contract. A machine that ended before the container is the same as its removal."""
        if self._last is not None:
            return self._last
        lives = self._vm is not None and self._vm.alive and self._is_there()  # before its end is looked for
        outcome = self._job.outcome()
        started_at = self._meta.created_at
        if outcome is None:
            if lives:
                return ContainerStatus("running", None, None, started_at, None)
            self._last = ContainerStatus("error", None, "gone", started_at, None)
            return self._last
        ended = execs.status_of(outcome.code, started_at, oom=outcome.oom)
        word, reason = ended.status, ended.reason
        if outcome.why != "ended":
            word, reason = ("timeout" if outcome.why == "timeout" else "cancelled"), None
        self._last = ContainerStatus(word, ended.exit_code, reason, started_at, outcome.finished_at)
        return self._last

    async def wait(self) -> ContainerStatus:
        """See the contract."""
        if not (await self.status()).done:
            await self._job.until_ended(self._vm, self._meta.watcher)
        return await self.status()

    async def logs(self, on_output: OnOutput, *, follow: bool = True) -> None:
        """See the contract."""
        if not self._is_there():
            raise Gone(f"the container {self._id} was removed")
        await self._job.follow(self._vm, on_output, watcher=self._meta.watcher if follow else 0, only_now=not follow)

    async def stop(self, grace: float = 10.0) -> None:
        """See the contract."""
        if (await self.status()).done or self._vm is None:
            return
        await finish(self._stop(self._vm, grace))

    async def cleanup(self) -> None:
        """See the contract."""
        await self.status()  # what it ended with is still known afterwards
        await self._remove()

    async def freeze(self) -> None:
        """See `capabilities.Freezable`. One that has ended stays as it is."""
        await self._set_frozen("1")

    async def unfreeze(self) -> None:
        """See `capabilities.Freezable`."""
        await self._set_frozen("0")

    async def stats(self, on_stat: OnStat) -> None:
        """See `capabilities.Measured`."""
        vm = self._vm
        if vm is None or (await self.status()).done:
            return
        meter = Meter(vm.guest, self._task_id)
        ending = asyncio.ensure_future(self._job.until_ended(vm, self._meta.watcher))
        try:
            while not ending.done():
                try:
                    stat = await meter.sample()
                except BackendError:
                    if (await self.status()).done:
                        return
                    raise
                if stat is not None:
                    await on_stat(stat)
                await asyncio.wait([ending], timeout=_SAMPLE)
            ending.result()
        finally:
            ending.cancel()
            await asyncio.wait([ending])

    async def _set_frozen(self, frozen: str) -> None:
        if self._vm is not None and not (await self.status()).done:
            await self._vm.guest.run(scripts.FREEZE, self._task_id, frozen)

    async def _stop(self, vm: Vm, grace: float) -> None:
        await self._job.end(vm, grace)
        await self._job.until_ended(vm)
