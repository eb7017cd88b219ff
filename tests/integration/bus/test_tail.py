"""Reading streams in order against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest
from nats.aio.msg import Msg

from conveyor_runtime.bus import ApiError, Bus, Committer, EmbeddedServer, Message, StoredMsg, Tail
from conveyor_runtime.bus.pull import Pull
from conveyor_runtime.bus.streams import (
    LOGS,
    STATE,
    delete_message,
    ensure_streams,
    list_consumers,
)
from tests.conftest import StartServer


@contextlib.asynccontextmanager
async def reading(tail: Tail) -> AsyncIterator[Tail]:
    try:
        yield tail
    finally:
        await tail.aclose()


async def write(bus: Bus, numbers: range, subject: str = "logs.r") -> None:
    committer = Committer(bus, LOGS)
    tasks = []
    for start in range(numbers.start, numbers.stop, 500):
        unit = [Message(subject, b"%d" % i) for i in range(start, min(start + 500, numbers.stop))]
        tasks.append(committer.commit(unit, timeout=60))
    await asyncio.gather(*tasks)
    await committer.close()


async def take(tail: Tail, count: int, timeout: float = 20.0) -> list[StoredMsg]:
    got: list[StoredMsg] = []
    async with asyncio.timeout(timeout):
        while len(got) < count:
            got.append(await anext(tail))
    return got


def numbers(messages: list[StoredMsg]) -> list[int]:
    return [int(message.data) for message in messages]


async def test_reads_in_order_then_follows(bus: Bus) -> None:
    await write(bus, range(5))
    async with reading(Tail(bus, LOGS, "logs.r")) as tail:
        got = await take(tail, 5)
        assert numbers(got) == [0, 1, 2, 3, 4]
        assert [message.seq for message in got] == [1, 2, 3, 4, 5]
        assert got[0].subject == "logs.r"
        assert not tail.caught_up.is_set()  # the last one may still be in its reader's hands
        follow = asyncio.create_task(take(tail, 2))
        await asyncio.wait_for(tail.caught_up.wait(), 5)
        await write(bus, range(5, 7))
        assert numbers(await follow) == [5, 6]


async def test_an_empty_stream_is_caught_up_at_once(bus: Bus) -> None:
    async with reading(Tail(bus, LOGS, ["logs.a", "logs.b"])) as tail:
        follow = asyncio.create_task(anext(tail))
        await asyncio.wait_for(tail.caught_up.wait(), 5)
        await write(bus, range(1), "logs.c")
        await write(bus, range(1, 2), "logs.b")
        assert (await asyncio.wait_for(follow, 5)).data == b"1"


async def test_starts_where_it_is_told_to(bus: Bus) -> None:
    await write(bus, range(10))
    async with reading(Tail(bus, LOGS, "logs.>", start_seq=8)) as tail:
        assert numbers(await take(tail, 3)) == [7, 8, 9]


async def test_deleted_and_purged_messages_are_no_gap(bus: Bus) -> None:
    await write(bus, range(10))
    await delete_message(bus, LOGS, 4)
    await delete_message(bus, LOGS, 10)
    await bus.api(f"STREAM.PURGE.{LOGS}", {"seq": 3})
    async with reading(Tail(bus, LOGS, "logs.r")) as tail:
        assert numbers(await take(tail, 6)) == [2, 4, 5, 6, 7, 8]
        follow = asyncio.create_task(anext(tail))
        await asyncio.wait_for(tail.caught_up.wait(), 5)
        follow.cancel()


async def test_last_per_subject_gives_the_newest_then_everything(bus: Bus) -> None:
    for number, run in enumerate("abab"):
        await bus.publish(f"logs.{run}", b"%d" % number)
    async with reading(Tail(bus, LOGS, "logs.>", last_per_subject=True)) as tail:
        assert numbers(await take(tail, 2)) == [2, 3]
        await write(bus, range(4, 6), "logs.a")
        assert numbers(await take(tail, 2)) == [4, 5]


async def test_the_state_bucket_as_a_read_model_sees_it(bus: Bus) -> None:
    committer = Committer(bus, STATE)
    for i in range(300):
        await committer.commit([Message(f"$KV.cv-state.k{i % 100}", b"%d" % i)])
    async with reading(Tail(bus, STATE, "$KV.cv-state.>", last_per_subject=True)) as tail:
        assert numbers(await take(tail, 100)) == list(range(200, 300))
    await committer.close()


async def test_a_lost_consumer_is_made_again_behind_what_was_seen(bus: Bus) -> None:
    await write(bus, range(3))
    async with reading(Tail(bus, LOGS, "logs.r")) as tail:
        assert numbers(await take(tail, 3)) == [0, 1, 2]
        [consumer] = await list_consumers(bus, LOGS)
        await bus.api(f"CONSUMER.DELETE.{LOGS}.{consumer['name']}")
        await write(bus, range(3, 6))
        assert numbers(await take(tail, 3, timeout=5)) == [3, 4, 5]


async def test_a_snapshot_that_is_interrupted_goes_on_without_repeating(bus: Bus) -> None:
    committer = Committer(bus, STATE)
    for start in range(0, 4000, 500):
        await committer.commit([Message(f"$KV.cv-state.k{i}", b"%d" % i) for i in range(start, start + 500)])
    async with reading(Tail(bus, STATE, "$KV.cv-state.>", last_per_subject=True)) as tail:
        got = await take(tail, 10)
        [consumer] = await list_consumers(bus, STATE)
        await bus.api(f"CONSUMER.DELETE.{STATE}.{consumer['name']}")
        got += await take(tail, 3990)
        assert numbers(got) == list(range(4000))
    await committer.close()


async def test_caught_up_is_not_set_before_the_end(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conveyor_runtime.bus.tail.WINDOW", 2)  # so that the reader often finds nothing there yet
    await write(bus, range(30))
    async with reading(Tail(bus, LOGS, "logs.r")) as tail:
        for _ in range(30):
            await asyncio.wait_for(anext(tail), 10)
            assert not tail.caught_up.is_set()
        follow = asyncio.create_task(anext(tail))
        await asyncio.wait_for(tail.caught_up.wait(), 5)
        follow.cancel()


async def test_closing_removes_the_consumer_and_ends_the_iteration(bus: Bus) -> None:
    tail = Tail(bus, LOGS, "logs.r")
    waiting = asyncio.create_task(anext(tail))
    await asyncio.wait_for(tail.caught_up.wait(), 5)
    await tail.aclose()
    with pytest.raises(StopAsyncIteration):
        await waiting
    assert await list_consumers(bus, LOGS) == []


async def test_a_wrong_request_fails_instead_of_trying_for_ever(bus: Bus) -> None:
    async with reading(Tail(bus, LOGS, ["logs.>", "logs.a"])) as tail:
        with pytest.raises(ApiError):
            await asyncio.wait_for(anext(tail), 5)


async def test_a_hundred_thousand_messages(bus: Bus) -> None:
    await write(bus, range(100_000))
    start = time.monotonic()
    async with reading(Tail(bus, LOGS, "logs.r")) as tail:
        expected = 0
        async with asyncio.timeout(60):
            async for message in tail:
                assert int(message.data) == expected
                expected += 1
                if expected == 100_000:
                    break
    print(f"100k messages read in {time.monotonic() - start:.1f} s")


async def kill(server: EmbeddedServer) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)


@pytest.mark.parametrize("last_per_subject", [False, True])
async def test_survives_servers_that_are_killed(start_server: StartServer, last_per_subject: bool) -> None:
    server = await start_server(sync="always")
    bus = await Bus.connect(server.url, name="reader")
    await ensure_streams(bus)
    total = 6000
    committer = Committer(bus, LOGS)

    async def writer() -> None:
        for start in range(0, total, 50):
            unit = [Message(f"logs.r{i}", b"%d" % i, msg_id=f"m{i}") for i in range(start, start + 50)]
            await committer.commit(unit, timeout=60)

    writing = asyncio.create_task(writer())
    seen: list[int] = []
    async with reading(Tail(bus, LOGS, "logs.>", last_per_subject=last_per_subject)) as tail:
        async with asyncio.timeout(60):
            while len(seen) < total:
                seen.append(int((await anext(tail)).data))
                if len(seen) in (500, 2500):
                    await kill(server)
    await writing
    assert seen == list(range(total))
    await committer.close()
    await bus.close()


async def test_late_messages_come_soon_after_an_outage(start_server: StartServer) -> None:
    server = await start_server()
    bus = await Bus.connect(server.url, name="reader")
    await ensure_streams(bus)
    async with reading(Tail(bus, LOGS, "logs.r")) as tail:
        waiting = asyncio.create_task(anext(tail))
        await asyncio.wait_for(tail.caught_up.wait(), 5)
        await kill(server)
        await bus.publish("logs.r", b"late", msg_id="late")
        start = time.monotonic()
        assert (await asyncio.wait_for(waiting, 10)).data == b"late"
        assert time.monotonic() - start < 2
    await bus.close()


async def test_what_was_lost_on_the_way_is_fetched_again_in_its_place(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stands, and a message of the middle did not arrive."""
    arrived = 0

    class Lossy(Pull):
        def _on_message(self, msg: Msg) -> None:
            nonlocal arrived
            arrived += bool(msg.reply)
            if not msg.reply or arrived != 4:
                super()._on_message(msg)

    monkeypatch.setattr("conveyor_runtime.bus.tail.Pull", Lossy)
    await write(bus, range(10))
    async with reading(Tail(bus, LOGS, "logs.r")) as tail:
        assert numbers(await take(tail, 10)) == list(range(10))
        assert arrived > 10
