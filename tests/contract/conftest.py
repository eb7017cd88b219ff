"""The places the contract is tried in, and a driver's view of one."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
import uvloop

from conveyor_runtime.orchestra import Backend, ExecTag, ExitStatus, Owner, Sandbox, Sandboxes, Stream, Task, namespace
from conveyor_runtime.orchestra.docker import DockerBackend
from conveyor_runtime.orchestra.native import NativeBackend
from tests.support.docker import busybox, docker_engine

__all__ = ["busybox", "docker_engine"]

TAG = ExecTag("run", "build", 1, 0)


def pytest_asyncio_loop_factories(config: Any, item: Any) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop the product runs on."""
    return {"uvloop": uvloop.new_event_loop}


@dataclass
class Said:
    """Collects what an exec wrote, and tells when it wrote something."""

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
        async with asyncio.timeout(20):
            while text not in self.stdout:
                self.news.clear()
                await self.news.wait()


class SandboxBackend(Backend, Sandboxes, Protocol):
    """What these tests need."""


class Place:
    """A backend, and what a test needs to use it without knowing which one it is."""

    def __init__(self, open_backend: Callable[[], Awaitable[SandboxBackend]], image: str) -> None:
        self._open = open_backend
        self._opened: list[SandboxBackend] = []
        self._used: set[str] = set()
        self.image = image
        self.installation = f"t{secrets.token_hex(4)}"

    async def open(self) -> SandboxBackend:
        """A backend object of its own, as another process would have it."""
        backend = await self._open()
        self._opened.append(backend)
        return backend

    def ns(self, run: str = "run", installation: str | None = None) -> str:
        """A namespace; it is closed after the test."""
        ns = namespace(installation or self.installation, run)
        self._used.add(ns)
        return ns

    def owner(self, run: str = "run", installation: str | None = None) -> Owner:
        return Owner(installation or self.installation, run, "start", 1, 0)

    def task(self, **options: Any) -> Task:
        return Task(**{"id": "sandbox", "image": self.image, **options})

    async def close(self) -> None:
        for ns in self._used:
            await self._opened[0].close_namespace(ns, grace=0)
        for backend in self._opened:
            await backend.close()


async def _native(root: Path) -> SandboxBackend:
    return NativeBackend(root)


@pytest.fixture
async def native_place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(lambda: _native(tmp_path / "native"), image="")
    await place.open()
    yield place
    await place.close()


@pytest.fixture
async def docker_place(busybox: str) -> AsyncIterator[Place]:
    async def open_backend() -> SandboxBackend:
        return await DockerBackend.open()

    place = Place(open_backend, image=busybox)
    await place.open()
    yield place
    await place.close()


@pytest.fixture(params=["native", pytest.param("docker", marks=pytest.mark.docker)])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest.fixture
async def backend(place: Place) -> SandboxBackend:
    return place._opened[0]


@pytest.fixture
async def sandbox(place: Place, backend: SandboxBackend) -> Sandbox:
    return await backend.start_sandbox(place.ns(), place.task(), place.owner())


async def run(sandbox: Sandbox, script: str, *words: str, **options: Any) -> tuple[ExitStatus, Said]:
    """Run a shell script to its end."""
    said = options.pop("said", None) or Said()
    options = {"tag": TAG, "grace": 0.3, **options}
    status = await sandbox.exec(["sh", "-c", script, "sh", *words], on_output=said, **options)
    return status, said


def unique() -> str:
    """A number of seconds to sleep that nobody else sleeps, by which a process can be told."""
    return str(1_000_000 + secrets.randbelow(8_000_000))


def sleeping(number: str) -> list[int]:
    """Processes of this machine that sleep that long; containers' too, their engine is here."""
    found = []
    for name in os.listdir("/proc"):
        try:
            words = Path("/proc", name, "cmdline").read_bytes().split(b"\0") if name.isdigit() else []
        except OSError:
            continue
        if words[-2:-1] == [number.encode()] and words[0].endswith((b"sleep", b"busybox")):
            found.append(int(name))
    return found


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for something that announces itself to nobody."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)
