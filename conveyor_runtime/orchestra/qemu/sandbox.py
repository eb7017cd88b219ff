"""One sandbox of a machine: a mount namespace, a cgroup and a workspace of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from conveyor_runtime.errors import BackendError, Gone, TerminalError
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.orchestra import execs
from conveyor_runtime.orchestra.archive import CLEAR, tar_stream
from conveyor_runtime.orchestra.qemu import file_scripts, scripts
from conveyor_runtime.orchestra.qemu.guest import ScriptFailed
from conveyor_runtime.orchestra.qemu.jobs import Job
from conveyor_runtime.orchestra.qemu.layout import TaskMeta
from conveyor_runtime.orchestra.qemu.transfer import sent
from conveyor_runtime.orchestra.qemu.vm import Vm
from conveyor_runtime.orchestra.status import ExitStatus, OnOutput
from conveyor_runtime.orchestra.task import ExecTag, Stdin

__all__ = ["PATH", "QemuSandbox"]

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Of every task, unless it says otherwise."""

_COPY = 600.0  # seconds
_BEGIN = 30.0  # seconds that a command may take to begin, beside its own limit
_LOOK = 0.02


class QemuSandbox:
    """See `conveyor_runtime.orchestra.capabilities.Sandbox`."""

    def __init__(
        self,
        ns: str,
        task_id: str,
        meta: TaskMeta,
        vm: Vm,
        is_there: Callable[[], bool],
        remove: Callable[[], Awaitable[None]],
    ) -> None:
        """`is_there` tells whether it has been removed meanwhile, `remove` does."""
        self._ns = ns
        self._task_id = task_id
        self._meta = meta
        self._vm = vm
        self._is_there = is_there
        self._remove = remove

    @property
    def id(self) -> str:
        return f"{self._ns}.{self._task_id}"

    @property
    def workspace(self) -> str:
        return self._meta.workdir

    async def exec(
        self,
        argv: list[str],
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        stdin: Stdin = b"",
        timeout: float | None = None,
        grace: float = 10.0,
        on_output: OnOutput,
        tag: ExecTag,
    ) -> ExitStatus:
        """See the contract."""
        self._check_alive()
        nonce = execs.new_nonce()
        command = execs.wrap(
            argv,
            directory=f"/run/conveyor/execs/{self._task_id}",
            tag=execs.check_tag(tag),
            nonce=nonce,
            note=f"{tag.run_id} -",
            workdir=execs.resolve_workdir(self.workspace, workdir),
        )
        marks = {execs.SANDBOX_MARK: self._ns, execs.EXEC_MARK: nonce}
        environment = {"PATH": PATH, "LANG": "C.UTF-8", **self._meta.env, **(env or {}), **marks}
        job = Job(self._vm.share, self._task_id, nonce)
        started_at = datetime.now(UTC)
        try:
            await job.make(stdin)
            running = _Running(job, self._vm, command, environment, user or self._meta.user, on_output)
            timed_out = await running.to_its_end(timeout, grace)
            outcome = job.outcome()
        except OSError as error:
            self._check_alive()
            raise BackendError(f"cannot make a job in {job.place}: {error}") from error
        finally:
            await finish(asyncio.to_thread(job.remove))
        if timed_out:
            return ExitStatus("timeout", outcome.code if outcome else 137, None, started_at, datetime.now(UTC))
        if outcome is None:
            raise Gone(f"the sandbox {self.id} was removed")
        status = execs.status_of(outcome.code, started_at, oom=outcome.oom)
        if status.status == "killed":
            self._check_alive()  # killed because somebody removed it: then it says so
        return status

    async def end_execs(self, step: str, before: tuple[int, int], *, grace: float = 10.0) -> int:
        """See the contract."""
        self._check_alive()
        fence = execs.fence_name(execs.check_tag(ExecTag("", step, *before)).step, before)
        found = (await self._vm.guest.run(scripts.FENCE, self._task_id, fence)).splitlines()
        records = [record for record in map(execs.Record.parse, found) if record and record.is_before(step, before)]
        jobs = [f"{self._task_id}/{record.nonce}" for record in records]
        if not jobs:
            return 0
        ended = await self._vm.guest.living(jobs)
        await execs.end(lambda signal: self._vm.guest.sweep(jobs, signal), grace)
        return len(ended)

    async def copy_in(self, source: Path, target: str) -> None:
        """See the contract."""
        self._check_alive()
        relative = execs.resolve_target(target)
        path = execs.resolve_workdir(self.workspace, relative)
        stream = await asyncio.to_thread(tar_stream, source)
        async with sent(self._vm, stream) as archive:
            # To its end, also when the caller is cancelled: nothing is to appear later in what somebody else works in.
            await finish(self._unpack(archive, relative, path))

    async def cleanup(self) -> None:
        """See the contract."""
        await self._remove()

    async def _unpack(self, archive: str, relative: str, path: str) -> None:
        guest = self._vm.guest
        try:
            await guest.inside(self._task_id, CLEAR, self.workspace, relative, timeout=_COPY)
        except ScriptFailed as error:
            raise TerminalError(str(error)) from error
        await guest.inside(self._task_id, file_scripts.UNPACK, archive, path, self._meta.user, timeout=_COPY)

    def _check_alive(self) -> None:
        if not self._is_there():
            raise Gone(f"the sandbox {self.id} was removed")
        if not self._vm.alive:
            raise self._vm.gone()


class _Running:
    """An exec from the moment it is asked for."""

    def __init__(
        self, job: Job, vm: Vm, argv: list[str], env: Mapping[str, str], user: str, on_output: OnOutput
    ) -> None:
        self._job = job
        self._vm = vm
        self._starting = asyncio.ensure_future(job.start(vm, argv, env=env, user=user))
        self._following = asyncio.ensure_future(self._follow(on_output))

    async def to_its_end(self, timeout: float | None, grace: float) -> bool:
        """Whether its time was over, counted from when the command itself began: an emulated guest takes its own to get
        that far. When this is left, with an error too, nothing of it runs any more."""
        try:
            async with asyncio.timeout(None if timeout is None else timeout + _BEGIN) as clock:
                if timeout is not None:
                    await self._begun(clock, timeout)
                await asyncio.shield(self._following)
        except TimeoutError:
            if not clock.expired():
                raise
            await finish(self._end(grace))
            await self._following
            return True
        except BaseException:
            await finish(self._end(grace))
            raise
        finally:
            self._following.cancel()
            await asyncio.wait([self._following])
            if not self._following.cancelled():
                self._following.exception()  # raised above
        return False

    async def _begun(self, clock: asyncio.Timeout, timeout: float) -> None:
        """Set the clock when it has begun, if it does before its end."""
        while not self._following.done():
            if self._job.begun:
                clock.reschedule(asyncio.get_running_loop().time() + timeout)
                return
            await asyncio.wait([self._following], timeout=_LOOK)

    async def _follow(self, on_output: OnOutput) -> None:
        watcher = await asyncio.shield(self._starting)
        await self._job.follow(self._vm, on_output, watcher=watcher)

    async def _end(self, grace: float) -> None:
        # A start on its way cannot be called back: what it starts must be there before it can be found.
        await asyncio.wait([self._starting])
        self._starting.exception()
        await self._job.end(self._vm, grace)
