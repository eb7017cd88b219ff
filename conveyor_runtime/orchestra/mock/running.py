"""A mock container or exec from its start to its end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from conveyor_runtime.orchestra import execs
from conveyor_runtime.orchestra.mock.process import Killed, Output, Process, Program
from conveyor_runtime.orchestra.status import ContainerStatus
from conveyor_runtime.orchestra.task import Owner, Task

__all__ = ["Running"]

Verdict = Literal["", "cancelled", "timeout", "gone"]
_PAUSE = 0.1  # seconds before a restart


class Running:
    """Runs its program in a task of its own, as often as its restart policy says."""

    def __init__(
        self,
        ns: str,
        task: Task,
        owner: Owner,
        program: Program,
        volumes: Mapping[str, dict[str, Any]],
        now: Callable[[], datetime],
        workspace: Path | None = None,
    ) -> None:
        """`workspace` makes it an exec."""
        self.task = task
        self.owner = owner
        self.output = Output()
        self.status = ContainerStatus("running", None, None, now(), None)
        self.ended = asyncio.Event()
        self._ns = ns
        self._program = program
        self._volumes = volumes
        self._now = now
        self._workspace = workspace
        self._verdict: Verdict = ""
        self._process: Process | None = None
        self._killed = asyncio.Event()
        self._work = asyncio.create_task(self._run())

    async def stop(self, grace: float, verdict: Verdict = "cancelled") -> None:
        """SIGTERM, grace, SIGKILL, as far as programs are concerned."""
        if self.ended.is_set():
            return
        self._verdict = self._verdict or verdict
        if self._process is not None:
            self._process.terminated.set()
        try:
            async with asyncio.timeout(grace):
                await self.ended.wait()
        except TimeoutError:
            self._killed.set()
            await self.ended.wait()

    @property
    def lives(self) -> bool:
        """Whether it, or anything it has left behind, still runs."""
        return not self.ended.is_set() or any(not task.done() for task in self._left())

    async def end(self, grace: float) -> None:
        """End an exec with what it has left behind: to its status, a signal did."""
        await self.stop(grace, "")
        left = self._left()
        if self._process is None or not left:
            return
        self._process.terminated.set()
        await asyncio.wait(left, timeout=grace)
        for task in left:
            task.cancel()
        await asyncio.wait(left)

    def _left(self) -> list[asyncio.Task[None]]:
        return self._process.left if self._process is not None else []

    async def _run(self) -> None:
        task, restarts = self.task, 0
        started = self.status.started_at
        overtime = asyncio.create_task(self._end_in_time(task.timeout)) if task.timeout is not None else None
        while True:
            code, oom = await self._once()
            again = task.restart.name in ("always", "unless-stopped") or (
                task.restart.name == "on-failure"
                and code != 0
                and (task.restart.max_retries == 0 or restarts < task.restart.max_retries)
            )
            if not again or self._is_doomed():
                break
            await asyncio.sleep(_PAUSE)
            if self._is_doomed():
                break
            restarts += 1
            self.status = ContainerStatus("running", None, None, self._now(), None, restarts=restarts)
        if overtime is not None:
            overtime.cancel()
        self.status = _final(code, oom, self._verdict, started, self._now(), restarts)
        await self.output.close()
        self.ended.set()

    def _is_doomed(self) -> bool:
        return self._verdict != ""

    async def _once(self) -> tuple[int, bool]:
        process = self._process = Process(self._ns, self.task, self._volumes, self.output, self._workspace)
        work = asyncio.ensure_future(self._program(process))
        asked = asyncio.create_task(process.terminated.wait())
        killed = asyncio.create_task(self._killed.wait())
        try:
            await asyncio.wait([work, asked, killed], return_when=asyncio.FIRST_COMPLETED)
            number = signal.SIGTERM
            if not work.done() and process.handles_term:
                await asyncio.wait([work, killed], return_when=asyncio.FIRST_COMPLETED)
                number = signal.SIGKILL
            if not work.done():
                work.cancel()
                await asyncio.wait([work])
                return 128 + number, False
            return await self._outcome(work)
        finally:
            for helper in (asked, killed):
                helper.cancel()

    async def _outcome(self, work: asyncio.Future[int]) -> tuple[int, bool]:
        try:
            return work.result(), False
        except Killed as death:
            return 128 + death.number, death.oom
        except Exception as error:  # noqa: BLE001 - a program that fails is a task that fails
            await self.output.write("stderr", f"{type(error).__name__}: {error}\n".encode())
            return 1, False

    async def _end_in_time(self, timeout: float) -> None:
        await asyncio.sleep(timeout)
        await self.stop(self.task.grace, "timeout")


def _final(
    code: int, oom: bool, verdict: Verdict, started: datetime, finished: datetime, restarts: int
) -> ContainerStatus:
    times = (started, finished, (), restarts)
    if verdict == "gone":
        return ContainerStatus("error", None, "gone", *times)
    if verdict == "cancelled":
        return ContainerStatus("cancelled", code, None, *times)
    if verdict == "timeout":
        return ContainerStatus("timeout", code, None, *times)
    ended = execs.status_of(code, started, oom=oom)
    return ContainerStatus(ended.status, code, ended.reason, *times)
