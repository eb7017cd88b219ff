"""Go programs beside ours, as processes that are killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.support.go import GoBuildError, build
from tests.support.required import missing


@pytest.fixture(scope="session")
def go_programs() -> Path:
    """The folder of the built programs."""
    if shutil.which("go") is None:
        missing("go", "no go on PATH")
    try:
        return build()
    except GoBuildError as error:
        missing("go", f"its programs cannot be built: {error}")
        raise


class GoProcess:
    """One program. What it prints is in `lines`, over all its lives."""

    def __init__(self, *argv: str) -> None:
        self.argv = argv
        self.lines: list[str] = []
        self._changed = asyncio.Condition()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Start it (again); the line in which it says that it is ready."""
        before = len(self.lines)
        self._process = await asyncio.create_subprocess_exec(
            *self.argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=4 << 20
        )
        self._reader = asyncio.create_task(self._read(self._process))
        [ready] = await self.until(lambda lines: [line for line in lines[before:] if line.startswith("ready")])
        return ready

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            async with self._changed:
                self.lines.append(line.decode().rstrip("\n"))
                self._changed.notify_all()

    async def until(self, found: Callable[[list[str]], list[str]], seconds: float = 30.0) -> list[str]:
        """Wait until `found` finds something in its lines."""
        async with asyncio.timeout(seconds), self._changed:
            while not (result := found(self.lines)):
                await self._changed.wait()
        return result

    def write(self, line: str) -> None:
        """A line on its stdin."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    async def kill(self) -> None:
        """`kill -9`."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            assert self._reader is not None
            await self._reader


@pytest.fixture
async def run_go(go_programs: Path) -> AsyncIterator[Callable[..., GoProcess]]:
    """Make a process of a program; it is ended after the test."""
    made: list[GoProcess] = []

    def make(program: str, *arguments: str) -> GoProcess:
        process = GoProcess(str(go_programs / program), *arguments)
        made.append(process)
        return process

    yield make
    for process in made:
        await process.kill()
