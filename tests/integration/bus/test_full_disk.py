"""A server that met the end of its disk writes no more by itself: it is started again once there is room."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conveyor_runtime.bus import Bus, Committer, EmbeddedServer, Message
from conveyor_runtime.bus.streams import STATE, ensure_streams, last_by_subject
from conveyor_runtime.errors import BusError
from tests.conftest import StartServer
from tests.support.disk import fill, small_disk

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    with small_disk(tmp_path / "small", "48m") as folder:
        yield folder


async def written_until_full(committer: Committer) -> list[str]:
    """Write until that fails; the subjects that were acknowledged."""
    stored: list[str] = []
    while True:
        name = f"$KV.cv-state.run.r{len(stored)}"
        try:
            await committer.commit([Message(name, os.urandom(30_000))], timeout=2)
        except BusError:
            return stored
        stored.append(name)


def is_full(server: EmbeddedServer) -> bool:
    return server.disk_is_full


async def test_it_writes_again_once_there_is_room(small: Path, start_server: StartServer) -> None:
    server = await start_server(data_dir=small / "nats", sync="always")
    bus = await Bus.connect(server.url, name="test")
    await ensure_streams(bus)
    committer = Committer(bus, STATE)
    ballast = fill(small, 1 << 20)
    stored = await written_until_full(committer)
    assert stored
    async with asyncio.timeout(5):
        while not is_full(server):
            await asyncio.sleep(0.05)
    before = server.pid
    ballast.unlink()
    async with asyncio.timeout(30):
        while is_full(server) or server.pid == before:
            await asyncio.sleep(0.05)
        while True:
            try:
                await committer.commit([Message("$KV.cv-state.run.after", b"x")], timeout=2)
                break
            except BusError:
                await asyncio.sleep(0.2)
    for name in stored:
        assert await last_by_subject(bus, STATE, name) is not None, "what was acknowledged is there"
    await committer.close()
    await bus.close()
    await server.stop()
