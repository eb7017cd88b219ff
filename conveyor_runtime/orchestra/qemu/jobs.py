"""One job of a guest, seen from the host: its directory in the share, its output as it grows, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from conveyor_runtime.errors import BackendError, Gone
from conveyor_runtime.orchestra import execs
from conveyor_runtime.orchestra.qemu import scripts
from conveyor_runtime.orchestra.qemu.agent import AgentError
from conveyor_runtime.orchestra.qemu.vm import JOBS, Vm
from conveyor_runtime.orchestra.status import OnOutput, Stream
from conveyor_runtime.orchestra.task import Stdin

__all__ = ["Job", "Outcome"]

_CHUNK = 256 * 1024
_LEAST, _MOST = 0.005, 0.05  # seconds between looks; in between, an eighth of how long there was no news
_LOST = 2.0  # seconds between questions whether somebody still watches over the job
_STREAMS: tuple[Stream, ...] = ("stdout", "stderr")


@dataclass(frozen=True)
class Outcome:
    """How a job ended. `code` is as a shell has it: 128 + n for a signal."""

    why: str
    """`ended` by itself, or after it was `stopped` or its time was over (`timeout`)."""
    code: int
    oom: bool
    finished_at: datetime


class Job:
    """A job called `name` of a task. Any number of these objects may stand for the same one."""

    def __init__(self, share: Path, task_id: str, name: str) -> None:
        """`share` is the machine's directory that its guest sees."""
        self.place = share / JOBS / name
        self._group = f"{task_id}/{name}"
        self._task_id = task_id
        self._name = name

    async def make(self, stdin: Stdin) -> None:
        """Make its directory, with all it may read. Not needed for one that is there already."""
        self.place.mkdir(mode=0o700)
        if stdin == b"":
            return
        with await asyncio.to_thread((self.place / "stdin").open, "wb") as file:
            if isinstance(stdin, bytes):
                await asyncio.to_thread(file.write, stdin)
            else:
                async for piece in stdin:
                    await asyncio.to_thread(file.write, piece)

    async def start(
        self,
        vm: Vm,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        user: str,
        timeout: float | None = None,
        grace: float = 10.0,
        whole: bool = False,
    ) -> int:
        """Have it started; the process id of who watches over it in the guest. `whole`: with its first process it ends
        altogether."""
        limit = "0" if timeout is None else f"{timeout:.3f}"
        stdin = "yes" if (self.place / "stdin").exists() else ""
        words = ["/bin/sh", "-c", scripts.JOB, "sh", self._task_id, self._name, user, stdin, limit]
        words += [str(int(grace * 10)), "yes" if whole else ""]
        return await vm.guest.agent.launch([*words, *argv], env=[f"{key}={value}" for key, value in env.items()])

    async def follow(self, vm: Vm | None, on_output: OnOutput, *, watcher: int = 0, only_now: bool = False) -> None:
        """Pass on what it wrote, from the beginning, until it has ended (or with `only_now`, what there is).

        `watcher` is what `start` returned. Raises `Gone` when the machine ends before the job, `BackendError` when
        nobody watches over it any more.
        """
        with contextlib.ExitStack() as files:
            tails = [_Tail(self.place / stream, stream) for stream in _STREAMS]
            for tail in tails:
                files.callback(tail.close)
            pulse = _Pulse(self, vm, watcher)
            while True:
                # In this order: what it wrote before its end is there by then.
                over = only_now or self.ended or vm is None or not vm.alive
                news = [await tail.pass_on(on_output) for tail in tails]
                if over:
                    break
                await pulse.beat(any(news))
        if not only_now and not self.ended:
            raise vm.gone() if vm is not None else Gone(f"the machine has ended, and with it {self._name}")

    async def until_ended(self, vm: Vm | None, watcher: int = 0) -> None:
        """Return when it has ended, or the machine has, or its directory is gone. Raises as `follow` does otherwise."""
        pulse = _Pulse(self, vm, watcher)
        while not (self.ended or vm is None or not vm.alive) and self.place.exists():
            await pulse.beat(news=False)

    @property
    def begun(self) -> bool:
        """Whether its command runs, or is the next thing to happen."""
        return (self.place / "stdout").exists()

    @property
    def ended(self) -> bool:
        """Whether its end is known."""
        return self._last_words() is not None

    def outcome(self) -> Outcome | None:
        """How it ended, None if it has not. One that could not begin has code 125, and its stderr says why."""
        found = self._last_words()
        if found is None:
            return None
        words, at = found
        try:
            code, oom = words
            why = "timeout" if self._before("timeout", at) else "stopped" if self._before("stop", at) else "ended"
            return Outcome(why, int(code), int(oom) > 0, datetime.fromtimestamp(at, UTC))
        except ValueError as error:
            raise BackendError(f"the guest says of the end of {self._name}: {' '.join(words)!r}") from error

    def _last_words(self) -> tuple[list[str], float] | None:
        """What the guest said at its end, and when in seconds of the host's clock. Told when it is told to the end."""
        try:
            with open(os.open(self.place / "exit", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as file:
                text = file.read(4096)
                return (text.split(), os.fstat(file.fileno()).st_mtime) if text.endswith("\n") else None
        except OSError:
            return None

    def _before(self, mark: str, at: float) -> bool:
        """Whether the file was put there before that."""
        try:
            return (self.place / mark).stat().st_mtime <= at
        except OSError:
            return False

    async def end(self, vm: Vm, grace: float) -> None:
        """SIGTERM, `grace` seconds, SIGKILL, to all of it; returns when nothing of it runs or ever will."""
        with contextlib.suppress(FileNotFoundError):
            (self.place / "stop").touch()

        async def sweep(signal: int) -> list[int]:
            return await vm.guest.sweep([self._group], signal) if vm.alive else []

        await execs.end(sweep, grace)

    def remove(self) -> None:
        """Forget it."""
        shutil.rmtree(self.place, ignore_errors=True)


class _Pulse:
    """The pace of looking after a job."""

    def __init__(self, job: Job, vm: Vm | None, watcher: int) -> None:
        self._job = job
        self._vm = vm
        self._watcher = watcher
        self._news = self._asked = asyncio.get_running_loop().time()

    async def beat(self, news: bool) -> None:
        """Wait for a moment, shorter after news, and not longer than the machine lives. Now and then, ask whether
        somebody still watches over the job."""
        assert self._vm is not None
        now = asyncio.get_running_loop().time()
        if news:
            self._news = now
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(max((now - self._news) / 8, _LEAST), _MOST)):
                await self._vm.ended()
        now = asyncio.get_running_loop().time()
        if self._watcher and now - self._asked > _LOST:
            self._asked = now
            if await self._is_lost(self._vm):
                raise BackendError("the guest lost sight of a job: how it ended is not known")

    async def _is_lost(self, vm: Vm) -> bool:
        try:
            found = await vm.guest.agent.call("guest-exec-status", {"pid": self._watcher})
            exited = bool(found["exited"])
        except AgentError:
            exited = True  # an agent that was started again, or was asked before
        except BackendError:
            return False  # gone, or busy: that will be seen otherwise
        return exited and vm.alive and not self._job.ended and self._job.place.exists()


class _Tail:
    """A file that grows, read from its beginning."""

    def __init__(self, path: Path, stream: Stream) -> None:
        self._path = path
        self._stream = stream
        self._file = -1
        self._taken = 0

    async def pass_on(self, on_output: OnOutput) -> bool:
        """Pass on what is new; whether there was something."""
        if self._file < 0:
            with contextlib.suppress(FileNotFoundError):
                self._file = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            if self._file < 0:
                return False
        # Not further than it reaches now: what was left in the background may write for ever.
        left = os.fstat(self._file).st_size - self._taken
        any_news = left > 0
        while left > 0 and (data := os.read(self._file, min(left, _CHUNK))):
            self._taken += len(data)
            left -= len(data)
            await on_output(self._stream, data)
        return any_news

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
