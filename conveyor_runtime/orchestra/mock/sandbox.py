"""A mock sandbox: its execs are programs, its files are real ones in a directory of its own."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from conveyor_runtime.errors import BackendError, Gone, TerminalError
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.orchestra import checks, execs
from conveyor_runtime.orchestra.archive import members
from conveyor_runtime.orchestra.mock.running import Running
from conveyor_runtime.orchestra.mock.world import World
from conveyor_runtime.orchestra.native.retiring import remove_tree
from conveyor_runtime.orchestra.status import ExitStatus, OnOutput
from conveyor_runtime.orchestra.task import ExecTag, Owner, Stdin, Task

__all__ = ["MockSandbox", "Sandboxed"]

_KEEPS: tuple[checks.Wish, ...] = ("mounts", "stdin", "timeout")


@dataclass(eq=False)
class Sandboxed:
    """What any number of `MockSandbox` stand for."""

    task: Task
    owner: Owner
    volumes: Mapping[str, dict[str, Any]]
    started_at: datetime
    workspace: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="conveyor-mock-")).resolve())
    execs: list[tuple[ExecTag, Running]] = field(default_factory=list)
    fences: dict[str, tuple[int, int]] = field(default_factory=dict)
    is_gone: bool = False

    def __post_init__(self) -> None:
        weakref.finalize(self, shutil.rmtree, self.workspace, ignore_errors=True)

    async def remove(self, grace: float) -> None:
        """End all that runs in it; its files go, too."""
        self.is_gone = True
        await asyncio.gather(*(running.end(grace) for _, running in self.execs))
        shutil.rmtree(self.workspace, ignore_errors=True)


class MockSandbox:
    """See `conveyor_runtime.orchestra.capabilities.Sandbox`."""

    def __init__(self, world: World, ns: str, found: Sandboxed) -> None:
        self._world = world
        self._ns = ns
        self._found = found

    @property
    def id(self) -> str:
        return f"{self._ns}.{self._found.task.id}"

    @property
    def workspace(self) -> str:
        return str(self._found.workspace)

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
        """See the contract. Its program is looked up by its step: it sees a task of that id with all the exec's own."""
        self._world.strike("exec")
        self._check_there()
        own = replace(
            self._found.task,
            id=execs.check_tag(tag).step,
            command=tuple(argv),
            env={**self._found.task.env, **(env or {})},
            workdir=execs.resolve_workdir(self.workspace, workdir),
            user=user or "",
            stdin=stdin,
            timeout=timeout,
            grace=grace,
        )
        if not argv or any("\0" in word for word in argv):
            raise TerminalError("a command needs at least one word, and none of them a NUL")
        checks.refuse(own, "mock", _KEEPS)
        if (tag.attempt, tag.takeover) < self._found.fences.get(tag.step, (0, 0)):
            now = self._world.now()
            await on_output("stderr", b"a later attempt has begun\n")
            return ExitStatus("error", 125, None, now, now)
        program = self._world.program(own)
        files = self._found.workspace
        running = Running(self._ns, own, self._found.owner, program, self._found.volumes, self._world.now, files)
        self._found.execs.append((tag, running))
        try:
            await running.output.follow(on_output)
            await running.ended.wait()
        except BaseException:
            await finish(running.end(grace))
            raise
        status = running.status
        if status.status == "killed":
            self._check_there()  # killed because somebody removed it: then it says so
        assert status.exit_code is not None
        assert status.finished_at is not None
        return ExitStatus(status.status, status.exit_code, status.reason, status.started_at, status.finished_at)

    async def end_execs(self, step: str, before: tuple[int, int], *, grace: float = 10.0) -> int:
        """See the contract."""
        self._world.strike("end_execs")
        self._check_there()
        self._found.fences[step] = max(before, self._found.fences.get(step, (0, 0)))
        earlier = [
            running
            for tag, running in self._found.execs
            if tag.step == step and (tag.attempt, tag.takeover) < before and running.lives
        ]
        await asyncio.gather(*(running.end(grace) for running in earlier))
        return len(earlier)

    async def copy_in(self, source: Path, target: str) -> None:
        """See the contract."""
        self._world.strike("copy_in")
        self._check_there()
        self._copy(source, execs.resolve_target(target))

    async def cleanup(self) -> None:
        """See the contract."""
        self._world.strike("cleanup")
        space = self._world.namespaces.get(self._ns)
        if space is not None and space.sandboxes.get(self._found.task.id) is self._found:
            del space.sandboxes[self._found.task.id]
        await self._found.remove(0)

    def _check_there(self) -> None:
        if self._found.is_gone:
            raise Gone(f"the sandbox {self.id} was removed")

    def _copy(self, source: Path, relative: str) -> None:
        """Blocking: a thread would take real time, which a test with virtual time does not have."""
        members(source)  # refuses what cannot be copied
        files = self._found.workspace
        place = files / relative
        if relative != "." and not place.parent.resolve().is_relative_to(files):
            raise TerminalError(f"{relative!r} leads out of the workspace")
        try:
            for old in files.iterdir() if relative == "." else [place]:
                if old.is_dir() and not old.is_symlink():
                    remove_tree(old)
                else:
                    old.unlink(missing_ok=True)
            shutil.copytree(source, place, symlinks=True, dirs_exist_ok=True)
        except OSError as error:
            raise BackendError(f"cannot copy into the workspace: {error}") from error
