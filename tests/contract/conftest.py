"""The places the contract is tried in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from conveyor_runtime.orchestra import Backend
from conveyor_runtime.orchestra.docker import DockerBackend
from conveyor_runtime.orchestra.mock import MockBackend, World
from conveyor_runtime.orchestra.native import NativeBackend
from conveyor_runtime.testing import Place, unique
from tests.contract.mock_shell import Shell
from tests.contract.toy_backend import Toy, ToyBackend
from tests.support.docker import busybox, docker_engine

__all__ = ["busybox", "docker_engine", "unique"]


def pytest_asyncio_loop_factories(config: Any, item: Any) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop the product runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def native_place(tmp_path: Path) -> AsyncIterator[Place]:
    async def open_backend() -> Backend:
        return NativeBackend(tmp_path / "native")

    async with Place(open_backend) as place:
        yield place


@pytest.fixture
async def toy_place(tmp_path: Path) -> AsyncIterator[Place]:
    toy = Toy(tmp_path)

    async def open_backend() -> Backend:
        return ToyBackend(toy)

    async with Place(open_backend) as place:
        yield place


@pytest.fixture
async def mock_place(tmp_path: Path) -> AsyncIterator[Place]:
    world = World(Shell(tmp_path))

    async def open_backend() -> Backend:
        return MockBackend(world)

    async with Place(open_backend) as place:
        yield place


@pytest.fixture
async def docker_place(busybox: str) -> AsyncIterator[Place]:
    async def open_backend() -> Backend:
        return await DockerBackend.open()

    async with Place(open_backend, image=busybox) as place:
        yield place


@pytest.fixture(params=["mock", "native", pytest.param("docker", marks=pytest.mark.docker)])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


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
