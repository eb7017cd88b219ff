"""Child processes with an honest end: own session, output passed on as it comes, whole group ended.

The pipes are ours, not asyncio's: a grandchild that keeps them open after its parent has exited must not keep the
caller waiting, and a slow consumer must slow the child down instead of filling memory.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from conveyor_runtime.kit.shielded import finish, hold

__all__ = ["Child", "Exit", "OnChunk", "run"]

OnChunk = Callable[[Literal["stdout", "stderr"], bytes], Awaitable[None]]

_CHUNK = 64 * 1024
_LINGER = 0.5  # seconds of silence after the child's exit before its pipes are given up
_AFTER_EXIT = 1024 * 1024  # bytes still taken then: more than a pipe and our read buffer hold, so none of the child's
_POLL = 0.05


@dataclass(frozen=True)
class Exit:
    """`code` is negative for a child that a signal ended (-9 = SIGKILL)."""

    code: int
    timed_out: bool = False


class Child:
    """A running child, leader of its own session and process group."""

    def __init__(self, process: Process, pumps: tuple[_Pump, _Pump]) -> None:
        self._process = process
        self._pumps = pumps

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | str | None = None,
        stdin: int = DEVNULL,
        on_chunk: OnChunk,
    ) -> Self:
        """Start it with exactly this environment, and `stdin` (a descriptor, which stays open here) to read.

        Raises OSError if it cannot be executed.

        `on_chunk` is awaited before more is read; its calls never overlap. A caller that is cancelled meanwhile still
        gets the child, and the cancellation right after, so that no child is lost half-way.
        """
        return await hold(cls._start(argv, env, cwd, stdin, on_chunk))

    @classmethod
    async def _start(
        cls, argv: Sequence[str], env: Mapping[str, str], cwd: Path | str | None, stdin: int, on_chunk: OnChunk
    ) -> Self:
        pipes = [os.pipe(), os.pipe()]
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                env=dict(env),
                cwd=cwd,
                stdin=stdin,
                stdout=pipes[0][1],
                stderr=pipes[1][1],
                start_new_session=True,
            )
        except BaseException:
            for read_end, _ in pipes:
                os.close(read_end)
            raise
        finally:
            for _, write_end in pipes:
                os.close(write_end)
        turn = asyncio.Lock()
        out = _Pump(pipes[0][0], "stdout", on_chunk, turn)
        err = _Pump(pipes[1][0], "stderr", on_chunk, turn)
        return cls(process, (out, err))

    @property
    def pid(self) -> int:
        """Process id, process group id and session id in one."""
        return self._process.pid

    async def wait(self) -> int:
        """The child's exit code (negative = signal), after all of its own output has been passed on.

        Raises what `on_chunk` raised, at once: the child then still runs and is the caller's to stop.
        """
        exited = asyncio.ensure_future(self._process.wait())
        tasks = [pump.task for pump in self._pumps]
        try:
            pending: set[asyncio.Future[Any]] = {exited, *tasks}
            while exited in pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    future.result()
            await self._drain()
        finally:
            exited.cancel()
        return exited.result()

    async def stop(self, grace: float) -> None:
        """SIGTERM to the group, SIGKILL after `grace` seconds, and again until no member is left."""
        await self._end_group(grace)
        await self._process.wait()

    async def close(self) -> None:
        """Give up the pipes. A child that still writes to them gets SIGPIPE."""
        for pump in self._pumps:
            await pump.close()

    async def _end_group(self, grace: float) -> None:
        loop = asyncio.get_running_loop()
        kill_at = loop.time() + grace
        send: int = signal.SIGTERM
        while True:
            try:
                os.killpg(self.pid, send)
            except ProcessLookupError:
                return
            except PermissionError:
                # What is left of the group has changed its user or is a zombie of somebody else's: not ours to end.
                return
            if self._only_zombies():
                return
            await asyncio.sleep(_POLL)
            send = signal.SIGKILL if loop.time() >= kill_at else 0

    def _only_zombies(self) -> bool:
        """The leader's exit is known and nobody but it is left: a reaped leader frees the group by itself."""
        return self._process.returncode is not None and not _group_alive(self.pid)

    async def _drain(self) -> None:
        """Pass on what the child wrote before it exited, without waiting for those who inherited its pipes."""
        for pump in self._pumps:
            pump.allow = _AFTER_EXIT
        while any(not pump.task.done() for pump in self._pumps):
            before = [pump.taken for pump in self._pumps]
            await asyncio.wait([pump.task for pump in self._pumps], timeout=_LINGER)
            idle = all(pump.task.done() or not pump.busy for pump in self._pumps)
            if idle and before == [pump.taken for pump in self._pumps]:
                break
        for pump in self._pumps:
            if pump.task.done() and not pump.task.cancelled():
                pump.task.result()


class _Pump:
    """Moves one pipe into `on_chunk`. It reads the descriptor itself: a transport of uvloop closes the file it is given
    and then, a moment later, the same number once more, which by then may be another thread's file."""

    def __init__(self, fd: int, stream: Literal["stdout", "stderr"], on_chunk: OnChunk, turn: asyncio.Lock) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self.taken = 0
        self.busy = False
        self.allow: int | None = None
        self.task = asyncio.create_task(self._run(stream, on_chunk, turn))

    async def _read(self) -> bytes:
        """What there is to read, waiting for it; b"" at the end."""
        while True:
            with suppress(BlockingIOError):
                return os.read(self._fd, _CHUNK)
            readable = asyncio.Event()
            self._loop.add_reader(self._fd, readable.set)
            try:
                await readable.wait()
            finally:
                self._loop.remove_reader(self._fd)

    async def _run(self, stream: Literal["stdout", "stderr"], on_chunk: OnChunk, turn: asyncio.Lock) -> None:
        while self.allow is None or self.allow > 0:
            data = await self._read()
            if not data:
                return
            self.busy = True
            async with turn:
                await on_chunk(stream, data)
            self.busy = False
            self.taken += len(data)
            if self.allow is not None:
                self.allow -= len(data)

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        if not self.task.cancelled():
            self.task.exception()  # seen by wait() already, or no longer of interest
        os.close(self._fd)


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | str | None = None,
    timeout: float | None = None,
    grace: float = 5.0,
    on_chunk: OnChunk,
) -> Exit:
    """Run a child to its end. Timeout (seconds) and cancellation end its whole group before this returns."""
    child = await Child.start(argv, env=env, cwd=cwd, on_chunk=on_chunk)
    try:
        try:
            async with asyncio.timeout(timeout) as clock:
                return Exit(await child.wait())
        except TimeoutError:
            if not clock.expired():
                raise
            await finish(child.stop(grace))
            return Exit(await child.wait(), timed_out=True)
        except BaseException:
            await finish(child.stop(grace))
            raise
    finally:
        await finish(child.close())


def _group_alive(pgid: int) -> bool:
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            with open(f"/proc/{entry.name}/stat", encoding="utf-8", errors="replace") as file:
                state, _, group = file.read().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(group) == pgid and state not in "ZX":
            return True
    return False
