"""What a scripted container or exec does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conveyor_runtime.orchestra.status import OnOutput, Stream
from conveyor_runtime.orchestra.task import Task

__all__ = ["Killed", "Output", "Process", "Program", "says"]


class Killed(Exception):
    """Raised by a program: signal `number` ended it, because memory ran out or for another reason."""

    def __init__(self, number: int, *, oom: bool = False) -> None:
        super().__init__(f"signal {number}")
        self.number = number
        self.oom = oom


@dataclass
class Output:
    """All that a container has written, in the order it was."""

    pieces: list[tuple[Stream, bytes]] = field(default_factory=list)
    closed: bool = False
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def write(self, stream: Stream, data: bytes) -> None:
        """Add something."""
        async with self.news:
            self.pieces.append((stream, data))
            self.news.notify_all()

    async def more_than(self, count: int) -> None:
        """Wait until there are more than `count` pieces, or none will come."""
        async with self.news:
            await self.news.wait_for(lambda: self.closed or count < len(self.pieces))

    async def follow(self, on_output: OnOutput, *, follow: bool = True) -> None:
        """Pass on everything, and what comes if asked to."""
        passed = 0
        while True:
            while passed < len(self.pieces):
                passed += 1
                await on_output(*self.pieces[passed - 1])
            if self.closed or not follow:
                return
            await self.more_than(passed)

    async def close(self) -> None:
        """No more will come."""
        async with self.news:
            self.closed = True
            self.news.notify_all()


class Process:
    """What a program sees of the container, or of the exec in a sandbox, that it is."""

    def __init__(
        self,
        ns: str,
        task: Task,
        volumes: Mapping[str, dict[str, Any]],
        output: Output,
        workspace: Path | None = None,
    ) -> None:
        self.ns = ns
        self.task = task
        self.volumes = volumes
        """Content of its volumes by name, as the programs keep it."""
        self.workspace = workspace
        """Where the files of its sandbox are; None in a container."""
        self.left: list[asyncio.Task[None]] = []
        """What an exec leaves behind when it ends by itself. Cancelled when that is killed, or the sandbox goes."""
        self.terminated = asyncio.Event()
        """Set when it is asked to end. A program that goes on is killed when its grace is over."""
        self.handles_term = False
        """A program that sets this is not ended by the asking itself."""
        self._output = output

    async def write(self, data: bytes, stream: Stream = "stdout") -> None:
        """Say something."""
        await self._output.write(stream, data)

    async def read(self) -> bytes:
        """All of its stdin."""
        stdin = self.task.stdin
        return stdin if isinstance(stdin, bytes) else b"".join([piece async for piece in stdin])


Program = Callable[[Process], Awaitable[int]]
"""Runs as a container; returns its exit code, or raises `Killed`. Cancelled when it is killed. What else it raises is
an error with exit code 1, told on stderr."""


def says(stdout: bytes = b"", stderr: bytes = b"", *, code: int = 0, seconds: float = 0.0) -> Program:
    """A program that writes this, takes its time and exits."""

    async def program(process: Process) -> int:
        for stream, data in (("stdout", stdout), ("stderr", stderr)):
            if data:
                await process.write(data, "stdout" if stream == "stdout" else "stderr")
        await asyncio.sleep(seconds)
        return code

    return program
