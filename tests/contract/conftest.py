"""The places the contract is tried in."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import uvloop

from conveyor_runtime.orchestra import Backend, BackendSettings, Wish
from conveyor_runtime.orchestra.docker import DockerBackend
from conveyor_runtime.orchestra.mock import MockBackend, World
from conveyor_runtime.orchestra.native import NativeBackend, cgroups
from conveyor_runtime.testing import Place, unique
from tests.contract.mock_shell import Shell
from tests.contract.toy_backend import Toy, ToyBackend
from tests.support.docker import busybox, docker_engine

__all__ = ["busybox", "docker_engine", "unique"]

_NOT_OF_SANDBOXES: set[Wish] = {"ports", "publish all ports", "restart policy", "stdin", "timeout", "volume sizes"}


def pytest_asyncio_loop_factories(config: Any, item: Any) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop the product runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def native_place(tmp_path: Path) -> AsyncIterator[Place]:
    async def open_backend() -> Backend:
        return NativeBackend(tmp_path / "native")

    # Whether limits can be kept is the machine's; tests/unit/orchestra/test_cgroups.py sees that it is found out.
    limits = cgroups.kept_wishes()
    keeps: list[Wish] = ["network host", "restart policy", "ulimits", *limits]
    async with Place(open_backend, keeps=keeps, sandboxes_keep=["network host", *limits]) as place:
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

    async with Place(
        open_backend, keeps=["restart policy", "the image's own command"], sandboxes_keep=["mounts"]
    ) as place:
        yield place


@pytest.fixture(scope="session")
def docker_network(docker_engine: Any) -> Iterator[str]:
    """A network that was made by hand."""
    name = f"cv-test-{secrets.token_hex(4)}"
    docker_engine.create_network(name)
    yield name
    docker_engine.remove_network(name)


@pytest.fixture(scope="session")
def docker_keeps(docker_engine: Any) -> set[Wish]:
    """What must be kept: all that is safe, but for what the engine's machine or disk cannot."""
    info = docker_engine.info()
    keeps: set[Wish] = {*get_args(Wish)} - {"network host"}
    if dict(info["DriverStatus"] or ()).get("Backing Filesystem") != "xfs":
        keeps -= {"disk limit", "volume sizes"}
    if not _has_all_capabilities():
        keeps -= {"privileged"}
    return keeps


def _has_all_capabilities() -> bool:
    """Whether this machine has any that it could give to a container."""
    known = int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd:")]
    return int(line.split()[1], 16) == (1 << known) - 1


@pytest.fixture
async def docker_place(
    busybox: str, docker_network: str, docker_keeps: set[Wish], tmp_path: Path
) -> AsyncIterator[Place]:
    host_path = tmp_path / "host"

    async def open_backend() -> Backend:
        return await DockerBackend.open(BackendSettings(host_paths=(host_path,)))

    async with Place(
        open_backend,
        image=busybox,
        keeps=docker_keeps,
        sandboxes_keep=docker_keeps - _NOT_OF_SANDBOXES,
        network=docker_network,
        host_path=host_path,
    ) as place:
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
