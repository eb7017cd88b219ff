"""A stream as bytes and back, larger than what the server sends without being told that it was taken (8 MiB)."""

from __future__ import annotations

import os

import pytest

from conveyor_runtime.bus import Bus, Committer, Message
from conveyor_runtime.bus.snapshot import Snapshot, restore_stream
from conveyor_runtime.bus.streams import LOGS, consumer_info, ensure_consumer, stream_info
from conveyor_runtime.errors import BusError

UNITS, UNIT = 25, 8
SIZE = 100_000


async def fill(bus: Bus) -> None:
    """20 MB that do not shrink."""
    committer = Committer(bus, LOGS)
    for number in range(UNITS):
        await committer.commit([Message(f"logs.r{number}", os.urandom(SIZE)) for _ in range(UNIT)], timeout=60)
    await committer.close()


async def test_all_of_a_large_stream_comes_back(bus: Bus) -> None:
    await ensure_consumer(bus, LOGS, "cvpy-x", filters=["logs.r1"])
    await fill(bus)
    before = await stream_info(bus, LOGS)
    assert before is not None and before["state"]["messages"] == UNITS * UNIT
    snapshot = Snapshot(bus, LOGS)
    chunks = [chunk async for chunk in snapshot]
    assert sum(map(len, chunks)) > UNITS * UNIT * SIZE
    await bus.api(f"STREAM.DELETE.{LOGS}")
    await restore_stream(bus, LOGS, snapshot.about, chunks)
    after = await stream_info(bus, LOGS)
    assert after is not None and after["config"] == before["config"]
    told = ("messages", "bytes", "first_seq", "last_seq", "num_subjects", "consumer_count")
    assert [after["state"].get(it) for it in told] == [before["state"].get(it) for it in told]
    consumer = await consumer_info(bus, LOGS, "cvpy-x")
    assert consumer is not None and consumer["num_pending"] == UNIT


async def test_a_snapshot_that_the_server_breaks_off_is_no_snapshot(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does with one whose reader was not heard of for 5 s."""
    await fill(bus)
    send = bus.send
    monkeypatch.setattr(bus, "send", lambda frame: None if b"$JS.SNAPSHOT.ACK." in frame else send(frame))
    got = 0
    with pytest.raises(BusError, match="stopped half-way: No Flow Response"):
        async for chunk in Snapshot(bus, LOGS):
            got += len(chunk)
    assert 0 < got < UNITS * UNIT * SIZE
