"""Group commit against a real server."""

from __future__ import annotations

import asyncio

import pytest

from conveyor_runtime.bus import ApiError, Bus, Committer, Message, PayloadTooLarge, Receipt
from conveyor_runtime.bus.streams import LOGS, STATE, last_by_subject
from conveyor_runtime.errors import BusError, BusUnavailable, RevisionConflict


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
    assert committer.stats.largest_batch == committer.stats.messages == 120
    for i, unit in enumerate(receipts):
        for j, receipt in enumerate(unit):
            assert await stored(bus, f"{i}-{j}") == (receipt.seq, b"%d" % i)


async def test_batches_stay_within_their_limit_and_keep_the_order(bus: Bus, committer: Committer) -> None:
    receipts = await asyncio.gather(*(committer.commit([key(i)]) for i in range(1200)))
    assert [unit[0].seq for unit in receipts] == list(range(1, 1201))
    assert committer.stats.largest_batch == 500
    assert committer.stats.batches == 3


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
