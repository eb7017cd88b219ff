"""One suite for every state store: the JetStream bucket and its twin in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from conveyor_runtime.bus import Bus, Committer, Message, Receipt
from conveyor_runtime.errors import BusUnavailable, RevisionConflict
from conveyor_runtime.store import Change, KvStore, MemoryStore, Store, Write
from conveyor_runtime.store.base import Watch


@pytest.fixture(params=["memory", "kv"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    # Asked for by name, so that the memory store needs no server. A loop is running, so the fixture must be async.
    url = request.getfixturevalue("nats_server").url
    from conveyor_runtime.bus.streams import ensure_streams

    bus = await Bus.connect(url, name="store")
    for name in (await bus.api("STREAM.NAMES"))["streams"] or []:
        await bus.api(f"STREAM.DELETE.{name}")
    await ensure_streams(bus)
    committer = Committer(bus, "KV_cv-state")
    yield KvStore(bus, committer)
    await committer.close()
    await bus.close()


async def value(store: Store, key: str) -> bytes | None:
    found = await store.get(key)
    return found.value if found else None


async def test_what_is_written_is_read_with_its_revision(store: Store) -> None:
    [first] = await store.commit([Write("run.a", b"1")])
    [second] = await store.commit([Write("run.a", b"2", first)])
    found = await store.get("run.a")
    assert found is not None and (found.value, found.revision) == (b"2", second) and second > first
    assert await store.get("run.b") is None


async def test_revisions_rise_in_the_whole_store(store: Store) -> None:
    revisions = [(await store.commit([Write(f"run.{name}", b"x")]))[0] for name in "abc"]
    assert revisions == sorted(set(revisions))


@pytest.mark.parametrize("expect", [0, 99_999])
async def test_a_failed_expectation_writes_nothing(store: Store, expect: int) -> None:
    await store.commit([Write("run.a", b"1")])
    with pytest.raises(RevisionConflict):
        await store.commit([Write("run.a", b"2", expect)])
    assert await value(store, "run.a") == b"1"


async def test_a_unit_is_written_whole_or_not_at_all(store: Store) -> None:
    await store.commit([Write("run.b", b"old")])
    with pytest.raises(RevisionConflict):
        await store.commit([Write("run.a", b"1", 0), Write("run.b", b"2", 0), Write("run.c", b"3")])
    assert [await value(store, f"run.{name}") for name in "abc"] == [None, b"old", None]
    revisions = await store.commit([Write("run.a", b"1", 0), Write("run.b", None), Write("run.c", b"3")])
    assert [await value(store, f"run.{name}") for name in "abc"] == [b"1", None, b"3"]
    assert revisions == sorted(revisions)


async def test_of_many_who_create_one_wins(store: Store) -> None:
    writes = [store.commit([Write("claim.r.s.1.0", b"%d" % number, 0)]) for number in range(20)]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert sum(isinstance(it, list) for it in outcomes) == 1
    assert all(isinstance(it, list | RevisionConflict) for it in outcomes)


async def test_a_deleted_key_may_be_created_anew(store: Store) -> None:
    [revision] = await store.commit([Write("run.a", b"1", 0)])
    await store.commit([Write("run.a", None, revision)])
    assert await store.get("run.a") is None
    with pytest.raises(RevisionConflict):
        await store.commit([Write("run.a", b"2", revision)])
    again, _ = await store.commit([Write("run.a", b"2", 0), Write("run.b", b"x", 0)])
    assert again > revision
    with pytest.raises(RevisionConflict):
        await store.commit([Write("run.a", b"3", 0)])
    assert await value(store, "run.a") == b"2"


async def test_creating_over_a_deleted_key_still_minds_the_other_keys(store: Store) -> None:
    await store.commit([Write("run.a", b"1"), Write("run.b", b"1")])
    await store.commit([Write("run.a", None)])
    with pytest.raises(RevisionConflict):
        await store.commit([Write("run.a", b"2", 0), Write("run.b", b"2", 0)])
    assert await value(store, "run.a") is None


async def test_deleting_what_is_not_there_is_no_error(store: Store) -> None:
    await store.commit([Write("run.a", None)])
    assert await store.get("run.a") is None


async def test_a_list_has_the_newest_of_what_begins_alike(store: Store) -> None:
    for key, data in [("instance.a", b"1"), ("instance.b", b"1"), ("instances.x", b"1"), ("instance.a", b"2")]:
        await store.commit([Write(key, data)])
    await store.commit([Write("instance.c", b"1")])
    await store.commit([Write("instance.b", None)])
    found = {it.key: it.value for it in await store.list("instance.")}
    assert found == {"instance.a": b"2", "instance.c": b"1"}
    assert await store.list("driver.") == []


async def test_purged_keys_are_gone_and_may_come_back(store: Store) -> None:
    for key in ("data.r.a.1.0", "data.r.b.1.0", "data.rr.a.1.0"):
        await store.commit([Write(key, b"1")])
    await store.purge("data.r.")
    assert [it.key for it in await store.list("data.")] == ["data.rr.a.1.0"]
    await store.commit([Write("data.r.a.1.0", b"2", 0)])
    await store.purge("data.nothing.")


async def collect(watch: Watch, count: int) -> list[Change]:
    found: list[Change] = []
    async with asyncio.timeout(5):
        async for change in watch:
            found.append(change)
            if len(found) == count:
                break
    return found


async def test_a_watch_tells_what_there_is_then_every_change_in_order(store: Store) -> None:
    for key in "abc":
        await store.commit([Write(f"run.{key}", b"1")])
    await store.commit([Write("run.a", b"2")])
    watch = store.watch()
    present = await collect(watch, 3)
    assert {change.key: change.value for change in present} == {"run.a": b"2", "run.b": b"1", "run.c": b"1"}
    await store.commit([Write("run.d", b"1"), Write("run.b", None)])
    changes = await collect(watch, 2)
    assert [(change.key, change.value) for change in changes] == [("run.d", b"1"), ("run.b", None)]
    revisions = [change.revision for change in (*present, *changes)]
    assert revisions == sorted(revisions)
    await watch.aclose()


@pytest.mark.parametrize("present", [0, 3])
async def test_a_watch_says_when_it_has_caught_up(store: Store, present: int) -> None:
    for number in range(present):
        await store.commit([Write(f"run.{number}", b"1")])
    watch = store.watch()
    seen: list[str] = []

    async def read() -> None:
        async for change in watch:
            seen.append(change.key)  # noqa: PERF401 - seen while it goes on

    reading = asyncio.create_task(read())
    async with asyncio.timeout(5):
        await watch.wait_caught_up()
    assert len(seen) == present
    reading.cancel()
    await watch.aclose()


# -- what only a store on a network can meet ---------------------------------------------------------------------


class DeafCommitter:
    """Commits for real, and loses the answer where a test says so."""

    def __init__(self, bus: Bus, *, lose: int, meanwhile: Callable[[], Awaitable[Any]] | None = None) -> None:
        self._real = Committer(bus, "KV_cv-state")
        self.lose = lose
        self.meanwhile = meanwhile
        self.calls = 0

    async def commit(self, unit: list[Message], *, timeout: float = 10.0) -> list[Receipt]:
        self.calls += 1
        receipts = await self._real.commit(unit, timeout=timeout)
        if self.calls <= self.lose:
            if self.meanwhile:
                await self.meanwhile()
            raise BusUnavailable("the answer got lost")
        return receipts


async def test_our_own_write_whose_answer_got_lost_is_success(bus: Bus) -> None:
    """Rule 1."""
    committer = DeafCommitter(bus, lose=1)
    store = KvStore(bus, committer)  # type: ignore[arg-type]
    revisions = await store.commit([Write("run.a", b"1", 0), Write("run.b", b"2", 0)])
    found = [await store.get("run.a"), await store.get("run.b")]
    assert [it and it.revision for it in found] == revisions
    assert committer.calls == 2


async def test_our_own_delete_whose_answer_got_lost_is_success(bus: Bus) -> None:
    """Rule 1."""
    plain = KvStore(bus, DeafCommitter(bus, lose=0))  # type: ignore[arg-type]
    [revision] = await plain.commit([Write("run.a", b"1")])
    store = KvStore(bus, DeafCommitter(bus, lose=1))  # type: ignore[arg-type]
    await store.commit([Write("run.a", None, revision)])
    assert await store.get("run.a") is None


async def test_a_write_another_one_followed_is_a_conflict_though_it_was_stored(bus: Bus) -> None:
    """Rule 1: what is stored now is not ours, so the caller must look again."""
    other = KvStore(bus, Committer(bus, "KV_cv-state"))

    async def overwrite() -> None:
        await other.commit([Write("run.a", b"theirs")])

    store = KvStore(bus, DeafCommitter(bus, lose=1, meanwhile=overwrite))  # type: ignore[arg-type]
    with pytest.raises(RevisionConflict):
        await store.commit([Write("run.a", b"1", 0)])
    assert await value(store, "run.a") == b"theirs"


async def test_an_answer_that_never_comes_is_unknown_in_time(bus: Bus) -> None:
    class Closed:
        async def commit(self, unit: list[Message], *, timeout: float = 10.0) -> list[Receipt]:
            raise BusUnavailable("closed")

    alive = 0

    async def tick() -> None:
        nonlocal alive
        while True:
            await asyncio.sleep(0.01)
            alive += 1

    ticking = asyncio.create_task(tick())
    with pytest.raises(BusUnavailable):
        await KvStore(bus, Closed()).commit([Write("run.a", b"1")], timeout=0.4)  # type: ignore[arg-type]
    ticking.cancel()
    assert alive > 5, "the loop stood still meanwhile"
