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

from conveyor_runtime.bus import Bus, Committer, EmbeddedServer, Message
from conveyor_runtime.bus.streams import DLQ, LOGS, MESSAGES, RESULTS, STATE, STREAMS, ensure_streams, stream_info
from conveyor_runtime.config import BusSettings
from conveyor_runtime.daemon.connect import state_on
from conveyor_runtime.daemon.soundness import EMBEDDED, MARKS, sound_store
from conveyor_runtime.errors import BusError, ConfigError
from conveyor_runtime.store import KvStore
from conveyor_runtime.store.base import Write
from conveyor_runtime.store.integrity import HighWater
from tests.conftest import StartServer

KEYS = 600

SUBJECTS = {LOGS: "logs.r", MESSAGES: "resources.t", RESULTS: "pipelines.x", DLQ: "cv.dlq.x"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


async def filled(data: Path, start_server: StartServer, *, crash: bool) -> Path:
    """A store with many keys and some messages that was served, and is stopped; the folder of its streams."""
    server = await start_server(data_dir=data / "nats")
    bus = await Bus.connect(server.url, name="test")
    await ensure_streams(bus)
    async with state_on(bus) as state, sound_store(bus, state, BusSettings(data_dir=data)):
        committer = Committer(bus, STATE)
        store = KvStore(bus, committer)
        await asyncio.gather(*(store.commit([Write(f"run.r{n}", b"x" * 600, 0)]) for n in range(KEYS)))
        await committer.close()
        for name, subject in SUBJECTS.items():
            committer = Committer(bus, name)
            await committer.commit([Message(subject, b"x" * 600) for _ in range(20)])
            await committer.close()
    await bus.close()
    if crash:
        await kill(server)
    await server.stop()
    return data / "nats" / "store" / "jetstream" / "$G" / "streams"


def block(streams: Path, name: str) -> Path:
    """The file of what was stored first."""
    return streams / name / "msgs" / "1.blk"


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


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def halve_between_records(file: Path) -> None:
    """Nothing in what is left looks broken."""
    content, end = file.read_bytes(), 0
    while end < len(content) // 2:
        end += int.from_bytes(content[end : end + 4], "little") & 0x3FFFFFFF  # the upper bits are flags
    file.write_bytes(content[:end])


def remove(file: Path) -> None:
    file.unlink()


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
    harm(block(await filled(data, start_server, crash=crash), STATE))
    with pytest.raises(ConfigError, match=r"damaged.*conveyor restore.*--accept-loss") as refused:
        await served(data, start_server)
    with pytest.raises(ConfigError, match="damaged"):
        await served(data, start_server)  # looking at it has not made it pass for sound
    caplog.set_level(logging.ERROR)
    epoch = await served(data, start_server, accept_loss=True)
    assert "what is missing is gone" in caplog.text, refused.value
    assert await served(data, start_server) == epoch, "accepted once, it is served as it is"


@pytest.mark.parametrize(
    ("name", "harm", "crash", "words"),
    [
        *((name, remove, False, rf"\d+ bytes of stream {name} are no messages") for name in STREAMS),
        *((name, halve_between_records, True, rf"stream {name} ends at sequence \d+,") for name in STREAMS),
        (STATE, halve_between_records, False, "the latest of the state is missing"),
        (STATE, flip, False, r"[1-9]\d* keys of the state cannot be read \("),
    ],
)
async def test_each_kind_of_loss_is_said_in_words_of_its_own(
    data: Path, start_server: StartServer, name: str, harm: Callable[[Path], None], crash: bool, words: str
) -> None:
    harm(block(await filled(data, start_server, crash=crash), name))
    with pytest.raises(ConfigError, match=f"damaged.*{words}"):
        await served(data, start_server)


async def test_a_loss_while_it_is_served_is_said_and_kept(
    data: Path, start_server: StartServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the mark, which tells of it when all sequences are as high again."""
    monkeypatch.setattr("conveyor_runtime.store.integrity.PERIOD", 0.02)
    lost = "stream cv-logs ends at sequence 0, and was acknowledged up to 3"
    server = await start_server(data_dir=data / "nats")
    bus = await Bus.connect(server.url, name="test")
    await ensure_streams(bus)
    async with state_on(bus) as state, sound_store(bus, state, BusSettings(data_dir=data)), asyncio.timeout(20):
        for _ in range(3):
            await bus.publish("logs.r", b"line")
        while HighWater.read(data / MARKS, EMBEDDED).sequences.get(LOGS) != 3:
            await asyncio.sleep(0.01)
        await bus.api(f"STREAM.DELETE.{LOGS}")
        while await stream_info(bus, LOGS) is None:
            with suppress(BusError):  # it is still clearing away the files of the one before
                await ensure_streams(bus)
        while not HighWater.read(data / MARKS, EMBEDDED).damage:
            await asyncio.sleep(0.01)
        assert f"the store has lost what was acknowledged: {lost}" in caplog.text
        for _ in range(4):
            await bus.publish("logs.r", b"line")
    await bus.close()
    await server.stop()
    with pytest.raises(ConfigError, match=f"damaged: {lost}"):
        await served(data, start_server)


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


@pytest.mark.parametrize("first", [1, 1000], ids=["from its beginning", "behind its end"])
async def test_a_removed_stream_is_damage_unless_its_sequences_go_on(
    data: Path, start_server: StartServer, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """While it is missing, nothing is said: somebody may be about to make it again."""
    monkeypatch.setattr("conveyor_runtime.store.integrity.PERIOD", 0.05)
    server = await start_server(data_dir=data / "nats")
    bus = await Bus.connect(server.url, name="test")
    await ensure_streams(bus)
    async with state_on(bus) as state, sound_store(bus, state, BusSettings(data_dir=data)):
        await bus.publish("logs.run", b"line")
        while HighWater.read(data / MARKS, EMBEDDED).sequences.get(LOGS) != 1:
            await asyncio.sleep(0.02)
        await bus.api(f"STREAM.DELETE.{LOGS}")
        await asyncio.sleep(0.3)
        mark = HighWater.read(data / MARKS, EMBEDDED)
        assert (mark.sequences[LOGS], mark.damage) == (1, [])
        await bus.api(f"STREAM.CREATE.{LOGS}", {"name": LOGS, **STREAMS[LOGS], "first_seq": first})
        await asyncio.sleep(0.3)
        assert bool(HighWater.read(data / MARKS, EMBEDDED).damage) is (first == 1)
    await bus.close()


async def test_a_control_plane_that_ends_over_a_loss_keeps_it(data: Path, start_server: StartServer) -> None:
    """Before it has come to look by itself."""
    server = await start_server(data_dir=data / "nats")
    bus = await Bus.connect(server.url, name="test")
    await ensure_streams(bus)
    async with state_on(bus) as state, sound_store(bus, state, BusSettings(data_dir=data)):
        await bus.publish("pipelines.driver.result", b"result")
    async with state_on(bus) as state, sound_store(bus, state, BusSettings(data_dir=data)):
        await asyncio.sleep(0.5)  # its first look
        await bus.api(f"STREAM.DELETE.{RESULTS}")
        while await stream_info(bus, RESULTS) is None:
            with suppress(BusError):
                await ensure_streams(bus)
    await bus.close()
    await server.stop()
    with pytest.raises(ConfigError, match="stream cv-results ends at sequence 0"):
        await served(data, start_server)
