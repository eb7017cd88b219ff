"""Group commit against a real server."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress

import pytest

from conveyor_runtime.bus import ApiError, Bus, Committer, EmbeddedServer, Message, PayloadTooLarge, Receipt
from conveyor_runtime.bus.streams import (
    LOGS,
    RESULTS,
    STATE,
    ensure_streams,
    last_by_subject,
    next_by_subject,
    stream_info,
)
from conveyor_runtime.errors import BusError, BusUnavailable, RevisionConflict
from tests.conftest import StartServer


def key(name: object, data: bytes = b"x", *, expect: int | None = None, msg_id: str | None = None) -> Message:
    return Message(f"$KV.cv-state.{name}", data, msg_id=msg_id, expect=expect)


@pytest.fixture
async def committer(bus: Bus):
    committer = Committer(bus, STATE)
    yield committer
    await committer.close()


async def stored(bus: Bus, name: object) -> tuple[int, bytes] | None:
    message = await last_by_subject(bus, STATE, f"$KV.cv-state.{name}")
    return None if message is None else (message.seq, message.data)


async def test_a_lone_write_goes_out_singly(committer: Committer) -> None:
    assert await committer.commit([key("a")]) == [Receipt(1, False)]
    assert committer.stats.batches == 0
    assert committer.stats.messages == 1


async def test_what_waits_together_becomes_a_batch_with_the_right_revisions(bus: Bus, committer: Committer) -> None:
    units = [[key(f"{i}-{j}", b"%d" % i) for j in range(1 + i % 3)] for i in range(60)]
    receipts = await asyncio.gather(*(committer.commit(unit) for unit in units))
    assert committer.stats.batches == 1
    assert committer.stats.messages == 120
    for i, unit in enumerate(receipts):
        for j, receipt in enumerate(unit):
            assert await stored(bus, f"{i}-{j}") == (receipt.seq, b"%d" % i)


async def test_batches_stay_within_their_limit_and_keep_the_order(bus: Bus, committer: Committer) -> None:
    receipts = await asyncio.gather(*(committer.commit([key(i)]) for i in range(1200)))
    assert [unit[0].seq for unit in receipts] == list(range(1, 1201))
    assert committer.stats.batches == 3  # 500, 500 and 200


async def test_a_conflict_in_a_batch_hurts_only_its_own_unit(bus: Bus, committer: Committer) -> None:
    await committer.commit([key("taken")])
    units = [[key(i, expect=0)] for i in range(20)]
    units.insert(7, [key("mine", expect=0), key("taken", b"late", expect=0)])
    results = await asyncio.gather(*(committer.commit(unit) for unit in units), return_exceptions=True)
    conflict = results.pop(7)
    assert isinstance(conflict, RevisionConflict)
    assert conflict.key == "$KV.cv-state.taken"
    assert await stored(bus, "mine") is None
    assert await stored(bus, "taken") == (1, b"x")
    for i, receipts in enumerate(results):
        assert isinstance(receipts, list)
        assert await stored(bus, i) == (receipts[0].seq, b"x")
    assert committer.stats.refused >= 1


async def test_a_single_conflict_names_its_subject(committer: Committer) -> None:
    [receipt] = await committer.commit([key("a")])
    with pytest.raises(RevisionConflict) as caught:
        await committer.commit([key("a", expect=receipt.seq + 7)])
    assert caught.value.key == "$KV.cv-state.a"
    assert (await committer.commit([key("a", expect=receipt.seq)]))[0].seq == receipt.seq + 1


async def test_expectations_on_one_subject_never_share_a_batch(bus: Bus, committer: Committer) -> None:
    units = [[key(f"other{i}"), key("same", b"%d" % i, expect=0)] for i in range(3)]
    results = await asyncio.gather(*(committer.commit(unit) for unit in units), return_exceptions=True)
    assert [type(result) for result in results] == [list, RevisionConflict, RevisionConflict]
    assert await stored(bus, "same") == (2, b"0")
    assert await stored(bus, "other1") is None


async def test_a_unit_of_several_is_stored_whole_or_not_at_all(bus: Bus, committer: Committer) -> None:
    await committer.commit([key("b")])
    with pytest.raises(RevisionConflict):
        await committer.commit([key("a"), key("b", expect=99), key("c")])
    assert await stored(bus, "a") is None
    assert await stored(bus, "c") is None


async def test_duplicates_are_success_and_said_so(committer: Committer) -> None:
    first = await committer.commit([key("a", msg_id="m1")])
    assert await committer.commit([key("a", msg_id="m1")]) == [Receipt(first[0].seq, True)]


async def test_a_duplicate_in_a_batch_hurts_nobody(bus: Bus, committer: Committer) -> None:
    [old] = await committer.commit([key("old", msg_id="old")])
    units = [[key(i, msg_id=f"n{i}")] for i in range(30)]
    units.insert(3, [key("old", b"again", msg_id="old"), key("fresh", msg_id="fresh")])
    units.append([key(5, b"again", msg_id="n5")])  # the same Msg-Id twice among those who wait
    results = await asyncio.gather(*(committer.commit(unit) for unit in units))
    assert results[3][0] == Receipt(old.seq, True)
    assert not results[3][1].duplicate
    assert results[-1] == [Receipt(results[6][0].seq, True)]
    assert await stored(bus, "old") == (old.seq, b"x")


async def test_repeating_a_unit_with_expectations_finds_its_own_write(committer: Committer) -> None:
    unit = [key("a", expect=0, msg_id="a1"), key("b", expect=0, msg_id="b1")]
    first = await committer.commit(unit)
    assert await committer.commit(unit) == [Receipt(receipt.seq, True) for receipt in first]


async def test_other_streams_and_headers(bus: Bus) -> None:
    committer = Committer(bus, LOGS)
    lines = [Message("logs.r1", b"%d" % i, headers={"Cv-Step": "s", "X-N": str(i)}) for i in range(40)]
    await asyncio.gather(*(committer.commit([line]) for line in lines))
    last = await last_by_subject(bus, LOGS, "logs.r1")
    assert last is not None
    assert (last.seq, last.data, last.headers["X-N"]) == (40, b"39", "39")
    await committer.close()


async def test_a_time_to_live_is_kept(bus: Bus, committer: Committer) -> None:
    await committer.commit([Message("$KV.cv-state.brief", b"x", ttl=0.2), key("c")])
    message = await last_by_subject(bus, STATE, "$KV.cv-state.brief")
    assert message is not None
    assert message.headers["Nats-TTL"] == "1"


async def test_what_no_stream_could_take_is_refused_before_it_is_sent(bus: Bus, committer: Committer) -> None:
    with pytest.raises(PayloadTooLarge):
        await committer.commit([key("a", b"x" * (bus.max_payload + 1))])
    with pytest.raises(PayloadTooLarge):
        await committer.commit([Message("$KV.cv-state.a", b"", headers={"A": "ü" * (bus.max_payload // 2)})])
    with pytest.raises(BusError, match="line break"):
        await committer.commit([Message("$KV.cv-state.a", b"", headers={"A": "b\r\nNats-Expected-Stream: c"})])
    with pytest.raises(BusError, match="not a subject"):
        await committer.commit([Message("$KV.cv-state.a b", b"")])
    with pytest.raises(ValueError, match="twice"):
        await committer.commit([key("a", expect=0), key("a")])
    assert await committer.commit([]) == []
    assert await committer.commit([key("a")]) == [Receipt(1, False)]


async def test_a_subject_of_no_stream_fails_when_time_is_up(bus: Bus) -> None:
    committer = Committer(bus, STATE)
    with pytest.raises(BusUnavailable, match="no stream"):
        await committer.commit([Message("nowhere.at.all", b"")], timeout=0.4)
    await committer.close()


async def test_a_refusal_for_other_reasons_is_an_api_error(bus: Bus) -> None:
    committer = Committer(bus, LOGS)
    with pytest.raises(ApiError) as caught:  # this stream allows no time to live
        await committer.commit([Message("logs.a", b"", ttl=5)])
    assert caught.value.code == 10166
    await committer.close()


async def test_cancelling_one_commit_disturbs_no_other(bus: Bus, committer: Committer) -> None:
    tasks = [asyncio.create_task(committer.commit([key(i)])) for i in range(100)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for i, result in enumerate(results):
        if i % 2:
            assert isinstance(result, list)
            assert await stored(bus, i) == (result[0].seq, b"x")
        else:
            assert isinstance(result, asyncio.CancelledError)
            assert await stored(bus, i) is None


async def test_close_settles_what_waits(bus: Bus) -> None:
    committer = Committer(bus, STATE)
    tasks = [asyncio.create_task(committer.commit([key(i)])) for i in range(700)]
    await asyncio.sleep(0)
    await committer.close()
    assert all(task.done() for task in tasks)
    assert [task.result()[0].seq for task in tasks] == list(range(1, 701))
    with pytest.raises(BusUnavailable, match="closed"):
        await committer.commit([key("late")])


# -- trouble ------------------------------------------------------------------------------------------------


def kill(server: EmbeddedServer) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)


async def down(bus: Bus) -> None:
    went = asyncio.Event()
    stop = bus.add_connection_listener(lambda up: None if up else went.set())
    if bus.connected:
        await asyncio.wait_for(went.wait(), 5)
    stop()


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed(start_server: StartServer) -> None:
    server = await start_server(sync="always")
    bus = await Bus.connect(server.url, name="writer")
    await ensure_streams(bus)
    committer = Committer(bus, RESULTS)
    acked: dict[str, int] = {}
    kills = 0

    async def caller(number: int) -> None:
        nonlocal kills
        for count in range(60):
            ids = [f"{number}.{count}.{part}" for part in range(1 + number % 2)]
            unit = [Message("pipelines.driver.result", b"x" * 300, msg_id=name) for name in ids]
            receipts = await committer.commit(unit, timeout=30)
            acked.update(zip(ids, (receipt.seq for receipt in receipts), strict=True))
            if len(acked) > 1500 * (kills + 1) and kills < 3:
                kills += 1
                kill(server)

    await asyncio.gather(*(caller(number) for number in range(100)))
    assert kills == 3
    state = (await bus.api(f"STREAM.INFO.{RESULTS}"))["state"]
    assert state["messages"] == len(acked) == 9000  # each stored, and stored once
    assert sorted(acked.values()) == list(range(1, 9001))
    for name in list(acked)[::500]:
        message = await next_by_subject(bus, RESULTS, ">", acked[name])
        assert message is not None
        assert message.headers["Nats-Msg-Id"] == name
    await committer.close()
    await bus.close()


async def test_what_carries_no_id_is_not_sent_twice(start_server: StartServer) -> None:
    server = await start_server()
    bus = await Bus.connect(server.url, name="writer")
    await ensure_streams(bus)
    committer = Committer(bus, STATE)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)  # takes the frames, answers nothing
    plain = asyncio.create_task(committer.commit([key("plain")]))
    named = asyncio.create_task(committer.commit([key("named", msg_id="n", expect=0)]))
    while committer.stats.commits == 0 and not committer._flights:
        await asyncio.sleep(0)
    kill(server)
    with pytest.raises(BusUnavailable, match="unknown"):
        await plain
    assert len(await named) == 1
    await committer.close()
    await bus.close()


async def test_commits_wait_for_the_reconnect_within_their_timeout(start_server: StartServer) -> None:
    server = await start_server()
    bus = await Bus.connect(server.url, name="writer")
    await ensure_streams(bus)
    committer = Committer(bus, STATE)
    await server.stop()
    await down(bus)
    with pytest.raises(BusUnavailable, match="nothing was sent"):
        await committer.commit([key("brief")], timeout=0.2)
    patient = [asyncio.create_task(committer.commit([key(i, expect=0)], timeout=20)) for i in range(40)]
    await asyncio.sleep(0)
    with pytest.raises(BusUnavailable):
        await bus.api("INFO")
    with pytest.raises(BusUnavailable):
        await bus.publish("logs.a", b"ghost", deadline=0.1)
    await server.start()
    receipts = await asyncio.gather(*patient)
    assert [unit[0].seq for unit in receipts] == list(range(1, 41))
    # What failed while the server was away was not sent behind its caller's back afterwards.
    assert await stored(bus, "brief") is None
    assert (await bus.api(f"STREAM.INFO.{LOGS}"))["state"]["messages"] == 0
    await committer.close()
    await bus.close()


async def test_a_unit_whose_answer_was_lost_is_known_again(bus: Bus, committer: Committer) -> None:
    unit = [key("a", expect=0, msg_id="a"), key("b", expect=0, msg_id="b")]
    task = asyncio.create_task(committer.commit(unit))
    while committer._flights.batch is None:
        await asyncio.sleep(0)
    committer._lost(committer._flights.all(), "test")  # the answer, under way, is no longer expected
    receipts = await task
    assert receipts == [Receipt(1, True), Receipt(2, True)]
    with pytest.raises(RevisionConflict):
        await committer.commit([key("a", expect=0, msg_id="other"), key("c", msg_id="c")])


async def test_its_own_write_is_known_even_when_the_stream_forgot_its_msg_id(bus: Bus) -> None:
    await bus.api("STREAM.CREATE.short", {"name": "short", "subjects": ["short.>"], "duplicate_window": 10**8})
    committer = Committer(bus, "short")
    task = asyncio.create_task(committer.commit([Message("short.a", b"x", msg_id="a", expect=0)]))
    while not committer._flights:
        await asyncio.sleep(0)
    committer._lost(committer._flights.all(), "test")
    committer._hold(0.5)  # sent again only when the window for duplicates is over
    assert await task == [Receipt(1, True)]
    await committer.close()


async def drop_atomic(bus: Bus, stream: str) -> None:
    info = await stream_info(bus, stream)
    assert info is not None
    await bus.api(f"STREAM.UPDATE.{stream}", {**info["config"], "allow_atomic": False})


async def test_a_stream_that_lost_its_group_commit_gets_it_back(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    committer = Committer(bus, LOGS)
    await drop_atomic(bus, LOGS)
    receipts = await asyncio.gather(*(committer.commit([Message("logs.a", b"x")]) for _ in range(50)))
    assert sorted(unit[0].seq for unit in receipts) == list(range(1, 51))
    assert sum("no atomic batches" in record.message for record in caplog.records) == 1
    async with asyncio.timeout(5):
        while not (await bus.api(f"STREAM.INFO.{LOGS}"))["config"].get("allow_atomic"):
            await asyncio.sleep(0.01)
        # The stream is mended a moment before the committer hears of it; until then a unit of two is refused.
        before = committer.stats.batches
        while committer.stats.batches == before:
            with suppress(BusError):
                await committer.commit([Message("logs.a", b"x"), Message("logs.a", b"y")])
            await asyncio.sleep(0.01)
    await committer.close()


async def test_without_group_commit_singles_work_and_units_fail_clearly(bus: Bus) -> None:
    await bus.api("STREAM.CREATE.foreign", {"name": "foreign", "subjects": ["foreign.>"]})
    committer = Committer(bus, "foreign")
    with pytest.raises(BusError, match="allow_atomic"):
        await committer.commit([Message("foreign.a", b""), Message("foreign.b", b"")])
    receipts = await asyncio.gather(*(committer.commit([Message("foreign.a", b"x")]) for _ in range(40)))
    assert [unit[0].seq for unit in receipts] == list(range(1, 41))
    await committer.close()
