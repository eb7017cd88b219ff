"""Streams, consumers and single messages on a real server."""

from __future__ import annotations

import asyncio
from typing import Any

import nats
import pytest

from conveyor_runtime.bus import ApiError, Bus, EmbeddedServer
from conveyor_runtime.bus.streams import (
    DLQ,
    LOGS,
    MESSAGES,
    RESULTS,
    STATE,
    STREAMS,
    consumer_info,
    delete_message,
    ensure_consumer,
    ensure_streams,
    is_foreign_engine,
    is_ours,
    last_by_subject,
    list_consumers,
    next_by_subject,
    stream_info,
)
from conveyor_runtime.config import BusSettings
from conveyor_runtime.errors import BusError


async def config(bus: Bus, name: str) -> dict[str, Any]:
    info = await stream_info(bus, name)
    assert info is not None
    found: dict[str, Any] = info["config"]
    return found


async def test_ensuring_streams_twice_changes_nothing(bus: Bus) -> None:
    before = {name: await config(bus, name) for name in STREAMS}
    updates: list[str] = []
    stop = await bus.subscribe_core("$JS.EVENT.ADVISORY.STREAM.UPDATED.>", lambda msg: updates.append(msg.subject))
    await asyncio.gather(*(ensure_streams(bus) for _ in range(3)))
    await stop()
    assert {name: await config(bus, name) for name in STREAMS} == before
    assert updates == []
    assert set(STREAMS) == {MESSAGES, RESULTS, LOGS, STATE, DLQ}
    assert all(found["allow_atomic"] and found["storage"] == "file" for found in before.values())
    assert before[MESSAGES]["consumer_limits"]["inactive_threshold"] == 30 * 86400 * 10**9
    assert before[LOGS]["max_age"] == 60 * 86400 * 10**9


async def test_many_processes_may_ensure_at_once(bus: Bus) -> None:
    for name in STREAMS:
        await bus.api(f"STREAM.DELETE.{name}")
    assert not await is_ours(bus)
    await asyncio.gather(*(ensure_streams(bus) for _ in range(5)))
    assert await is_ours(bus)


async def test_only_our_own_fields_are_set_right(bus: Bus) -> None:
    changed = {**await config(bus, LOGS), "max_age": 10**12, "allow_atomic": False, "description": "theirs"}
    await bus.api(f"STREAM.UPDATE.{LOGS}", changed)
    await bus.publish("logs.a", b"kept")
    await ensure_streams(bus)
    after = await config(bus, LOGS)
    assert after["max_age"] == STREAMS[LOGS]["max_age"]
    assert after["allow_atomic"] is True
    assert after["description"] == "theirs"
    assert await last_by_subject(bus, LOGS, "logs.a") is not None


async def test_a_foreign_engines_bus_is_told_apart_and_refused(bus: Bus) -> None:
    for name in STREAMS:
        await bus.api(f"STREAM.DELETE.{name}")
    await bus.api("STREAM.CREATE.pipeline-engine", {"name": "pipeline-engine", "subjects": ["pipelines.>"]})
    assert await is_foreign_engine(bus)
    assert not await is_ours(bus)
    with pytest.raises(BusError, match="bus or an account of its own"):
        await ensure_streams(bus)


async def test_what_cannot_be_updated_is_said(bus: Bus) -> None:
    await bus.api(f"STREAM.DELETE.{RESULTS}")
    await bus.api(f"STREAM.CREATE.{RESULTS}", {"name": RESULTS, "subjects": ["pipelines.>"], "storage": "memory"})
    with pytest.raises(BusError, match=f"stream {RESULTS}"):
        await ensure_streams(bus)


async def test_the_state_bucket_is_one_for_other_tools(bus: Bus, nats_server: EmbeddedServer) -> None:
    client = await nats.connect(nats_server.url)
    bucket = await client.jetstream().key_value("cv-state")
    revision = await bucket.create("a.b", b"theirs")
    message = await last_by_subject(bus, STATE, "$KV.cv-state.a.b")
    assert message is not None
    assert (message.seq, message.data) == (revision, b"theirs")
    await bus.publish("$KV.cv-state.a.c", b"ours")
    entry = await bucket.get("a.c")
    assert entry.value == b"ours"
    await client.close()


async def test_who_says_nothing_of_replicas_leaves_them_as_they_are(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second `serve` without the option must not cut a cluster's streams down to one copy."""
    asked: list[dict[str, Any]] = []
    api = bus.api

    async def three(verb: str, body: Any = None, **options: Any) -> dict[str, Any]:
        if verb.startswith("STREAM.UPDATE"):
            asked.append(body)
        answer = await api(verb, body, **options)
        if verb.startswith("STREAM.INFO"):
            answer["config"]["num_replicas"] = 3
        return answer

    monkeypatch.setattr(bus, "api", three)
    assert BusSettings().replicas is None
    await ensure_streams(bus, replicas=BusSettings().replicas)
    assert asked == []


async def test_single_messages(bus: Bus) -> None:
    assert await last_by_subject(bus, LOGS, "logs.a") is None
    for i in range(3):
        await bus.publish("logs.a", b"%d" % i, headers={"Cv-Step": f"s{i}"})
    message = await last_by_subject(bus, LOGS, "logs.a")
    assert message is not None
    assert (message.seq, message.data, message.headers) == (3, b"2", {"Cv-Step": "s2"})
    assert message.time.utcoffset() is not None
    assert await delete_message(bus, LOGS, 2)
    assert not await delete_message(bus, LOGS, 2)
    following = await next_by_subject(bus, LOGS, "logs.>", 2)
    assert following is not None
    assert following.seq == 3
    assert await next_by_subject(bus, LOGS, "logs.>", 4) is None
    with pytest.raises(ApiError):
        await last_by_subject(bus, "no-such-stream", "a")


async def test_a_consumer_is_made_as_declared_and_kept(bus: Bus) -> None:
    filters = ["drivers.d.resources.t", "resources.t"]
    first = await ensure_consumer(bus, MESSAGES, "cvpy-d", filters=filters, max_ack_pending=64)
    made = first["config"]
    assert made["durable_name"] == "cvpy-d"
    assert (made["max_waiting"], made["max_deliver"], made["ack_wait"]) == (2048, -1, 30 * 10**9)
    assert made["inactive_threshold"] == 30 * 86400 * 10**9
    again = await ensure_consumer(bus, MESSAGES, "cvpy-d", filters=filters[::-1], max_ack_pending=64)
    assert again["config"] == made
    assert again["created"] == first["created"]


async def test_new_filters_reach_the_same_consumer_without_losing_its_work(bus: Bus) -> None:
    first = await ensure_consumer(bus, MESSAGES, "cvpy-d", filters=["drivers.d.resources.a"])
    await bus.publish("drivers.d.resources.a", b"waits")
    filters = ["drivers.d.resources.a", "drivers.d.resources.b"]
    changed = await ensure_consumer(bus, MESSAGES, "cvpy-d", filters=filters, max_ack_pending=7)
    assert changed["created"] == first["created"]
    assert sorted(changed["config"]["filter_subjects"]) == filters
    assert changed["config"]["max_ack_pending"] == 7
    assert changed["num_pending"] == 1
    back = await ensure_consumer(bus, MESSAGES, "cvpy-d", filters=["drivers.d.resources.a"])
    assert back["num_pending"] == 1


async def test_a_foreign_create_or_update_under_our_name_fails(bus: Bus) -> None:
    ours = await ensure_consumer(bus, MESSAGES, "cvpy-d", filters=["drivers.d.resources.t"])
    # What Conveyor's Go SDK sends: no action, so create or update.
    foreign = {
        "name": "cvpy-d",
        "filter_subjects": ["resources.x"],
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "max_ack_pending": 1,
    }
    with pytest.raises(ApiError, match="max waiting"):
        await bus.api(f"CONSUMER.CREATE.{MESSAGES}.cvpy-d", {"stream_name": MESSAGES, "config": foreign})
    info = await consumer_info(bus, MESSAGES, "cvpy-d")
    assert info is not None
    assert info["config"] == ours["config"]


async def test_a_foreign_consumer_of_our_name_is_not_taken_over(bus: Bus) -> None:
    foreign = {"name": "cvpy-d", "filter_subject": "resources.x", "ack_policy": "explicit"}
    await bus.api(f"CONSUMER.CREATE.{MESSAGES}.cvpy-d", {"stream_name": MESSAGES, "config": foreign})
    with pytest.raises(BusError, match="not ours"):
        await ensure_consumer(bus, MESSAGES, "cvpy-d", filters=["resources.x"])


async def test_consumers_are_listed(bus: Bus) -> None:
    assert await list_consumers(bus, MESSAGES) == []
    names = [f"cvpy-{i}" for i in range(300)]  # more than one page
    await asyncio.gather(*(ensure_consumer(bus, MESSAGES, name, filters=[f"resources.{name}"]) for name in names))
    assert sorted(info["name"] for info in await list_consumers(bus, MESSAGES)) == sorted(names)
    assert await consumer_info(bus, MESSAGES, "nobody") is None
    with pytest.raises(BusError, match="cannot make consumer"):
        await ensure_consumer(bus, MESSAGES, "cvpy-x", filters=["resources.>", "resources.a"])
