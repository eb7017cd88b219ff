"""A backend under test, and what a case needs to use it without knowing which one it is."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast

import pytest

from conveyor_runtime.errors import TerminalError
from conveyor_runtime.orchestra import (
    Backend,
    Container,
    ContainerStatus,
    ExecTag,
    ExitStatus,
    Owner,
    Sandbox,
    Sandboxes,
    Stream,
    Task,
    Wish,
    namespace,
    wishes,
)

__all__ = ["TAG", "Place", "Said", "SandboxBackend", "run", "unique", "until"]

TAG = ExecTag("run", "build", 1, 0)
PATIENCE = 30.0
_KEPT_BY_ALL: set[Wish] = {"mounts", "stdin", "timeout"}
_Begin = Callable[[str, Task, Owner], Awaitable[object]]


class SandboxBackend(Backend, Sandboxes, Protocol):
    """What the cases of sandboxes need."""


@dataclass
class Said:
    """Collects what was written, and tells when something was."""

    stdout: bytes = b""
    stderr: bytes = b""
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, stream: Stream, data: bytes) -> None:
        if stream == "stdout":
            self.stdout += data
        else:
            self.stderr += data
        self.news.set()

    async def until(self, text: bytes) -> None:
        """Wait for `text` on stdout."""
        async with asyncio.timeout(PATIENCE):
            while text not in self.stdout:
                self.news.clear()
                await self.news.wait()


class Place:
    """A backend under test. A context manager: at its end all namespaces it gave out are closed, and all backends.

    What it is said to keep is proven, and to refuse that fails; all else it must refuse before anything starts. Some
    proofs ask more of the place:

    | wish | what it needs |
    |---|---|
    | named network | `network` is the name of one that is not the default |
    | host mounts | `host_path` is a directory that the operator has listed, and that the cases may write to |
    | publish all ports | the image exposes 8081/tcp and nothing else |
    | the image's own command | it says `own` |
    """

    def __init__(
        self,
        open_backend: Callable[[], Awaitable[Backend]],
        image: str = "",
        *,
        keeps: Collection[Wish] = (),
        sandboxes_keep: Collection[Wish] = (),
        network: str = "",
        host_path: Path | None = None,
    ) -> None:
        """`open_backend` makes another object for the same place, as another process would; `image` has a `sh`. `keeps`
        are the wishes that its containers keep, beside those that all must; `sandboxes_keep` those of its sandboxes."""
        self._open = open_backend
        self._opened: list[Backend] = []
        self._used: set[str] = set()
        self.image = image
        self.keeps = _KEPT_BY_ALL | set(keeps)
        self.sandboxes_keep = set(sandboxes_keep)
        self.network = network
        self.host_path = host_path
        self.installation = f"t{secrets.token_hex(4)}"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for ns in self._used:
            await self.backend.close_namespace(ns, grace=0)
        for backend in self._opened:
            await backend.close()

    @property
    def backend(self) -> Backend:
        """The first one."""
        return self._opened[0]

    async def open(self) -> SandboxBackend:
        """Another backend object for the same place."""
        backend = await self._open()
        self._opened.append(backend)
        return cast(SandboxBackend, backend)

    def sandboxes(self) -> SandboxBackend:
        """The first one, if it has sandboxes; skips the case if not."""
        if not isinstance(self.backend, Sandboxes):
            pytest.skip("no sandboxes")
        return cast(SandboxBackend, self.backend)

    def ns(self, run: str = "run", installation: str | None = None) -> str:
        """A namespace; it is closed after the case."""
        ns = namespace(installation or self.installation, run)
        self._used.add(ns)
        return ns

    def owner(self, run: str = "run", installation: str | None = None) -> Owner:
        """Who asks."""
        return Owner(installation or self.installation, run, "start", 1, 0)

    def task(self, **options: Any) -> Task:
        """A sandbox's task."""
        return Task(**{"id": "sandbox", "image": self.image, **options})

    def sh(self, script: str, *words: str, **options: Any) -> Task:
        """A container's task: a shell script with its arguments."""
        return Task(**{"id": "task", "image": self.image, "command": ("sh", "-c", script, "sh", *words), **options})

    async def run(self, script: str, *words: str, run: str = "run", **options: Any) -> Container:
        """Start a shell script."""
        return await self.start(self.sh(script, *words, **options), run=run)

    async def start(self, task: Task, *, run: str = "run") -> Container:
        """Prepare and run a task. If it asks for more than is kept here: see that it is refused, and skip the case."""
        await self._refuses(task, wishes(task) - self.keeps, self.backend.run, run)
        with await self.backend.prepare(task, quiet):
            return await self.backend.run(self.ns(run), task, self.owner(run))

    async def start_sandbox(self, *, run: str = "run", **options: Any) -> Sandbox:
        """The same of a sandbox."""
        task, backend = self.task(**options), self.sandboxes()
        unkept = wishes(task) - self.sandboxes_keep - {"the image's own command"}
        await self._refuses(task, unkept, backend.start_sandbox, run)
        with await backend.prepare(task, quiet):
            return await backend.start_sandbox(self.ns(run), task, self.owner(run))

    async def _refuses(self, task: Task, unkept: set[Wish], begin: _Begin, run: str) -> None:
        if not unkept:
            return
        before = await self.backend.namespaces(self.installation)
        for _ in range(2):
            with pytest.raises(TerminalError):
                await begin(self.ns(run), task, self.owner(run))
            assert await self.backend.namespaces(self.installation) == before, "refused, but not before it began"
        pytest.skip(f"not kept here: {', '.join(sorted(unkept))}")

    async def ended(self, script: str, *words: str, **options: Any) -> tuple[ContainerStatus, Said]:
        """Run a shell script to its end."""
        container = await self.run(script, *words, **options)
        status = await wait(container)
        return status, await logs(container)

    async def sleeping(self, number: str) -> int:
        """How many processes of the place sleep that long. Looks at this machine; a place elsewhere overrides it."""
        return await asyncio.to_thread(_sleeping, number.encode())


def _sleeping(number: bytes) -> int:
    found = 0
    for name in os.listdir("/proc"):
        try:
            words = Path("/proc", name, "cmdline").read_bytes().split(b"\0") if name.isdigit() else []
        except OSError:
            continue
        found += words[-2:-1] == [number] and words[0].endswith((b"sleep", b"busybox"))
    return found


async def quiet(line: str) -> None:
    """Nobody reads the progress."""


async def wait(container: Container) -> ContainerStatus:
    """Its end, which must come soon."""
    async with asyncio.timeout(PATIENCE):
        return await container.wait()


async def logs(container: Container, *, follow: bool = True) -> Said:
    """All its output."""
    said = Said()
    async with asyncio.timeout(PATIENCE):
        await container.logs(said, follow=follow)
    return said


async def run(sandbox: Sandbox, script: str, *words: str, **options: Any) -> tuple[ExitStatus, Said]:
    """Run a shell script in a sandbox to its end."""
    said = options.pop("said", None) or Said()
    options = {"tag": TAG, "grace": 0.3, **options}
    status = await sandbox.exec(["sh", "-c", script, "sh", *words], on_output=said, **options)
    return status, said


def unique() -> str:
    """A number of seconds to sleep that nobody else sleeps, by which a process can be told."""
    return str(1_000_000 + secrets.randbelow(8_000_000))


async def until(condition: Callable[[], Awaitable[object]], seconds: float = 10.0) -> None:
    """Wait for something that announces itself to nobody."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - there is nothing to be told by
            await asyncio.sleep(0.02)
