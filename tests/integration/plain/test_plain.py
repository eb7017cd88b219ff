"""Our drivers on the bus of a Go Conveyor engine (rule 18): found, said, served at least once, nothing of ours left."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import orjson
import pytest

from conveyor_runtime.bus import Bus, Message
from conveyor_runtime.bus.consumers import consumer_info, list_consumers
from conveyor_runtime.daemon.connect import connect
from conveyor_runtime.errors import BusUnavailable, ConfigError, RetryableError
from conveyor_runtime.models import DriverResult
from conveyor_runtime.reconcile import Driver, DriverLogger
from conveyor_runtime.reconcile.plain import LOGS, PlainLogs
from tests.conftest import StartServer
from tests.integration.plain.conftest import Add
from tests.support.go_engine import STREAMS, GoEngine, stream_config


def counter(seen: list[str], name: str = "ours", **options: Any) -> Driver:
    def reconcile(payload: str, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
        seen.append(run_id)
        for number in range(5):
            logger.info(f"line {number}")
        return DriverResult(success=True, message="done", data={"n": len(seen)})

    return Driver(name, ("thing",), reconcile, **options)


async def test_an_event_is_worked_on_reported_and_acknowledged(
    engine: GoEngine, add: Add, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    live: list[bytes] = []
    await engine.bus.subscribe_core("live.logs.run-1.ours", lambda msg: live.append(msg.data))
    await add(counter(seen))
    said = [record.message for record in caplog.records if "belongs to a Conveyor engine" in record.message]
    assert len(said) == 1 and "plain contract" in said[0]
    await engine.event("ours", "run-1")
    result = await engine.result()
    assert result["run_id"] == "run-1" and result["resource"]["spec"] == {"x": 1} and "cv" not in result
    assert result["driverresult"] == {"success": True, "message": "done", "data": {"n": 1}, "driver": "ours"}
    lines = [await engine.lines.get() for _ in range(5)]
    assert [line["message"] for line in lines] == [f"line {number}" for number in range(5)]
    assert {line["runid"] for line in lines} == {"run-1"} and [orjson.loads(it) for it in live] == lines
    await engine.emptied()
    assert seen == ["run-1"]


async def test_nothing_of_ours_is_made_but_a_consumer_of_our_naming(engine: GoEngine, add: Add) -> None:
    await add(counter([]))
    names = (await engine.bus.api("STREAM.NAMES"))["streams"]
    assert sorted(names) == sorted(STREAMS)
    for name in STREAMS:
        config = (await engine.bus.api(f"STREAM.INFO.{name}"))["config"]
        assert {key: config.get(key) for key in ("subjects", "retention", "max_age", "discard")} == {
            key: stream_config(name)[key] for key in ("subjects", "retention", "max_age", "discard")
        }
    [info] = await list_consumers(engine.bus, "messages")
    assert info["name"] == info["config"]["durable_name"] == "cvpy-ours"
    assert set(info["config"]["filter_subjects"]) == {"drivers.ours.resources.thing", "resources.thing"}


async def test_many_at_once_are_each_stored_though_no_stream_takes_batches(
    engine: GoEngine, add: Add, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    await add(counter(seen), concurrency=64)
    runs = [f"run-{number}" for number in range(300)]
    await asyncio.gather(*(engine.event("ours", run) for run in runs))
    results = {(await engine.result(30))["run_id"] for _ in runs[:100]}
    assert len(results) == 100
    assert not [record for record in caplog.records if "atomic" in record.message or "refused" in record.message]
    await engine.emptied()
    assert sorted(seen) == sorted(runs)
    assert await engine.waiting("pipeline-engine") == 200, "the emulated engine asked for 100"


async def test_a_failure_is_a_result_and_not_another_try(engine: GoEngine, add: Add) -> None:
    """Nothing there says that it should be retried."""

    def reconcile(payload: str, event: str, run_id: str, logger: DriverLogger) -> None:
        raise RetryableError("no luck")

    await add(Driver("ours", ("thing",), reconcile))
    await engine.event("ours", "run-1")
    said = (await engine.result())["driverresult"]
    assert (said["success"], said["message"]) == (False, "no luck")
    await engine.emptied()


async def test_a_drained_process_hands_its_work_to_the_next(engine: GoEngine, add: Add) -> None:
    started = asyncio.Event()
    told: list[str] = []

    async def slow(payload: str, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
        logger.info("slow begins")
        started.set()
        await asyncio.sleep(60)
        return DriverResult(success=True)

    manager = await add(Driver("ours", ("thing",), slow), drain_grace=0.1)
    await engine.event("ours", "run-1")
    await asyncio.wait_for(started.wait(), 5)
    manager.drain()
    await add(counter(told))
    assert (await engine.result())["driverresult"]["success"]
    await engine.emptied()
    messages = [(await engine.lines.get())["message"] for _ in range(6)]
    assert told == ["run-1"] and messages == ["slow begins", *(f"line {number}" for number in range(5))]


async def test_what_ends_everybody_who_is_handed_it_is_given_up(
    engine: GoEngine, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Poison is bounded."""
    monkeypatch.setattr("conveyor_runtime.reconcile.plain.MOST_DELIVERIES", 2)
    monkeypatch.setattr("conveyor_runtime.reconcile.dispatch.BUSY_RETRY", 0.05)
    started = asyncio.Queue[str]()

    async def slow(payload: str, event: str, run_id: str, logger: DriverLogger) -> None:
        started.put_nowait(run_id)
        await asyncio.sleep(60)

    await engine.event("ours", "run-0")  # lost: an interest stream without a consumer
    for _ in range(2):
        manager = await add(Driver("ours", ("thing",), slow), drain_grace=0.01)
        if started.empty() and _ == 0:
            await engine.event("ours", "run-1")
        assert await asyncio.wait_for(started.get(), 5) == "run-1"
        manager.drain()
    await add(Driver("ours", ("thing",), slow))
    said = (await engine.result())["driverresult"]
    assert (said["success"], said["message"]) == (False, "handed out 2 times, and no result came of it")
    await engine.emptied()
    assert started.empty()


async def test_what_nobody_can_read_is_dropped(engine: GoEngine, add: Add, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []
    await add(counter(seen))
    await engine.bus.publish("drivers.ours.resources.thing", b"{")
    await engine.event("ours", "run-1")
    assert (await engine.result())["run_id"] == "run-1"
    await engine.emptied()
    assert seen == ["run-1"] and "cannot be worked on and is dropped" in caplog.text


async def test_an_attempt_named_by_a_strange_publisher_is_plain_work(engine: GoEngine, add: Add) -> None:
    seen: list[str] = []
    await add(counter(seen))
    message = {"event": "create", "payload": '{"name":"n","resource":"thing"}', "id": "i", "run_id": "run-1"}
    headers = {"Cv-Run": "run-1", "Cv-Step": "s", "Cv-Attempt": "1", "Cv-Takeover": "0"}
    await engine.bus.publish("drivers.ours.resources.thing", orjson.dumps(message), headers=headers)
    assert "cv" not in await engine.result()
    assert seen == ["run-1"]


async def test_without_a_stream_for_logs_results_are_reported_all_the_same(
    url: str, add: Add, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor_runtime.reconcile.plain._LOOK", 0.5)
    engine = await GoEngine.start(await Bus.connect(url, name="go-engine"), ("messages", "pipeline-engine"))
    live: list[bytes] = []
    await engine.bus.subscribe_core("live.logs.*.ours", lambda msg: live.append(msg.data))
    await add(counter([]))
    for run in ("run-1", "run-2"):
        await engine.event("ours", run)
        assert (await engine.result())["run_id"] == run
    assert len(live) == 10
    assert len([record for record in caplog.records if "no stream on this bus keeps logs" in record.message]) == 1
    await engine.bus.api("STREAM.CREATE.logs-engine", stream_config("logs-engine"))
    await asyncio.sleep(0.6)
    await engine.event("ours", "run-3")
    await engine.result()
    assert await engine.waiting("logs-engine") == 5, "a stream that comes later is found"
    await engine.stop()


async def test_lines_wait_for_a_bus_that_is_away_and_are_not_taken_for_unwanted(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I5: what takes them cannot be told now."""
    monkeypatch.setattr("conveyor_runtime.reconcile.plain._LOOK", 0.3)
    server = await start_server()
    engine = await GoEngine.start(await Bus.connect(server.url, name="go-engine"))
    logs = PlainLogs(engine.bus, LOGS)
    line = Message("logs.run-1", b"{}")
    [first] = await logs.commit([line])
    await server.stop()
    for _ in range(2):
        with pytest.raises(BusUnavailable):
            await logs.commit([line])
    await server.start()
    await engine.bus.wait_connected(10)
    [second] = await logs.commit([line])
    assert 0 < first.seq < second.seq
    await logs.close()
    await engine.stop()


async def test_a_consumer_deleted_under_our_feet_is_made_again(engine: GoEngine, add: Add) -> None:
    seen: list[str] = []
    await add(counter(seen))
    await engine.bus.api("CONSUMER.DELETE.messages.cvpy-ours")
    async with asyncio.timeout(10):
        while await consumer_info(engine.bus, "messages", "cvpy-ours") is None:
            await asyncio.sleep(0.05)
    await engine.event("ours", "run-1")
    assert (await engine.result())["run_id"] == "run-1"


async def test_a_go_driver_of_its_name_is_in_its_way(engine: GoEngine, add: Add) -> None:
    config = {"name": "ours", "ack_policy": "explicit", "filter_subject": "resources.thing"}
    await engine.bus.api("CONSUMER.CREATE.messages.ours", {"stream_name": "messages", "config": config})
    with pytest.raises(ConfigError, match="built on another SDK has a consumer"):
        await add(counter([]))


async def test_a_process_that_stood_still_gives_its_work_back(
    engine: GoEngine, add: Add, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another was handed it meanwhile."""
    caplog.set_level(logging.INFO)
    started, tries = asyncio.Event(), list[str]()

    async def slow(payload: str, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
        tries.append(run_id)
        started.set()
        if len(tries) == 1:
            await asyncio.sleep(60)
        return DriverResult(success=True)

    monkeypatch.setattr("conveyor_runtime.reconcile.dispatch.BUSY_RETRY", 0.05)
    monkeypatch.setattr("conveyor_runtime.reconcile.lease.RENEW_EVERY", 0.5)
    manager = await add(Driver("ours", ("thing",), slow))
    await engine.event("ours", "run-1")
    await asyncio.wait_for(started.wait(), 5)
    # As after a SIGSTOP: nothing ran, and the clock went on. Its next renewal succeeds, and proves nothing.
    manager._lease._clock = lambda: time.monotonic() + 30
    assert (await engine.result())["driverresult"]["success"] and tries == ["run-1", "run-1"]


async def test_a_control_plane_refuses_it(engine: GoEngine, url: str) -> None:
    with pytest.raises(ConfigError, match="belongs to a Conveyor engine"):
        await connect(url, name="test")
    assert sorted((await engine.bus.api("STREAM.NAMES"))["streams"]) == sorted(STREAMS)
