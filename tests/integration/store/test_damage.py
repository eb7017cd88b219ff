"""What a damaged disk takes from a stopped store is noticed at the next start, said, and refused unless accepted."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from conveyor_runtime.bus import Bus, Committer, EmbeddedServer
from conveyor_runtime.bus.streams import STATE, ensure_streams
from conveyor_runtime.config import BusSettings
from conveyor_runtime.daemon.connect import state_on
from conveyor_runtime.daemon.soundness import sound_store
from conveyor_runtime.errors import ConfigError
from conveyor_runtime.store import KvStore
from conveyor_runtime.store.base import Write
from tests.conftest import StartServer

KEYS = 600


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


async def filled(data: Path, start_server: StartServer, *, crash: bool) -> Path:
    """A store with many keys that was served, and is stopped; the folder of its state's blocks."""
    server = await start_server(data_dir=data / "nats")
    bus = await Bus.connect(server.url, name="test")
    await ensure_streams(bus)
    async with state_on(bus) as state, sound_store(bus, state, BusSettings(data_dir=data)):
        committer = Committer(bus, STATE)
        store = KvStore(bus, committer)
        await asyncio.gather(*(store.commit([Write(f"run.r{n}", b"x" * 600, 0)]) for n in range(KEYS)))
        await committer.close()
    await bus.close()
    if crash:
        await kill(server)
    await server.stop()
    return data / "nats" / "store" / "jetstream" / "$G" / "streams" / STATE / "msgs"


async def kill(server: EmbeddedServer) -> None:
    assert server._keeper is not None and server._process is not None and server.pid is not None
    server._keeper.cancel()
    with suppress(asyncio.CancelledError):
        await server._keeper
    server._keeper = None
    os.kill(server.pid, signal.SIGKILL)
    await server._process.wait()


async def served(data: Path, start_server: StartServer, *, accept_loss: bool = False) -> str:
    """Start on it again; the epoch then."""
    server = await start_server(data_dir=data / "nats")
    bus = await Bus.connect(server.url, name="test")
    try:
        await ensure_streams(bus)
        async with state_on(bus) as state, sound_store(bus, state, BusSettings(data_dir=data, accept_loss=accept_loss)):
            committer = Committer(bus, STATE)
            stored = await KvStore(bus, committer).get("meta.epoch")
            await committer.close()
            return stored.value.decode() if stored else ""
    finally:
        await bus.close()
        await server.stop()


def flip(block: Path) -> None:
    content = bytearray(block.read_bytes())
    content[len(content) // 2] ^= 0x10
    block.write_bytes(content)


def halve(block: Path) -> None:
    block.write_bytes(block.read_bytes()[: block.stat().st_size // 2])


def halve_between_records(block: Path) -> None:
    """Nothing in what is left looks broken."""
    content, end = block.read_bytes(), 0
    while end < len(content) // 2:
        end += int.from_bytes(content[end : end + 4], "little") & 0x3FFFFFFF  # the upper bits are flags
    block.write_bytes(content[:end])


def remove(block: Path) -> None:
    block.unlink()


@pytest.mark.parametrize("crash", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize("harm", [flip, halve, halve_between_records, remove])
async def test_damage_is_noticed(
    data: Path,
    start_server: StartServer,
    harm: Callable[[Path], None],
    crash: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("conveyor_runtime.store.integrity._STALLED", 3.0)
    blocks = await filled(data, start_server, crash=crash)
    harm(blocks / "1.blk")
    with pytest.raises(ConfigError, match=r"damaged.*conveyor restore.*--accept-loss") as refused:
        await served(data, start_server)
    with pytest.raises(ConfigError, match="damaged"):
        await served(data, start_server)  # looking at it has not made it pass for sound
    caplog.set_level(logging.ERROR)
    epoch = await served(data, start_server, accept_loss=True)
    assert "what is missing is gone" in caplog.text, refused.value
    assert await served(data, start_server) == epoch, "accepted once, it is served as it is"


@pytest.mark.parametrize("crash", [False, True], ids=["stopped", "killed"])
async def test_a_sound_store_is_served_and_keeps_its_epoch(data: Path, start_server: StartServer, crash: bool) -> None:
    await filled(data, start_server, crash=crash)
    epoch = await served(data, start_server)
    assert epoch and await served(data, start_server) == epoch


async def test_another_store_in_its_place_is_noticed(data: Path, start_server: StartServer) -> None:
    """An older copy, put back by hand."""
    await filled(data, start_server, crash=False)
    (data / "nats" / "store").rename(data / "aside")
    with pytest.raises(ConfigError, match="epoch of the store is gone"):
        await served(data, start_server)


async def test_a_deleted_key_is_no_damage(data: Path, start_server: StartServer) -> None:
    await filled(data, start_server, crash=False)
    server = await start_server(data_dir=data / "nats")
    bus = await Bus.connect(server.url, name="test")
    async with state_on(bus) as state, sound_store(bus, state, BusSettings(data_dir=data)):
        committer = Committer(bus, STATE)
        store = KvStore(bus, committer)
        await store.commit([Write("run.r1", None)])
        await store.purge("run.r2")
        await bus.api(f"STREAM.PURGE.{STATE}", {"filter": "$KV.cv-state.run.r3"})
        await committer.close()
    await bus.close()
    await server.stop()
    assert await served(data, start_server)
