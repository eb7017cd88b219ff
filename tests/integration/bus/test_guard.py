"""What a foreign engine does to the configuration of our streams is undone within 5 s, and said by who undid it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from conveyor_runtime.bus import Bus, EmbeddedServer, guard, streams
from conveyor_runtime.bus.guard import guard_streams
from conveyor_runtime.bus.streams import MESSAGES, RESULTS, STATE, STREAMS, stream_info
from conveyor_runtime.config import ApiSettings, DriverSettings
from conveyor_runtime.daemon.connect import connect, state_on
from conveyor_runtime.daemon.control import control_plane
from conveyor_runtime.daemon.worker import connected_manager
from conveyor_runtime.errors import BusError
from conveyor_runtime.models import DriverResult
from conveyor_runtime.reconcile import Driver, DriverLogger
from tests.conftest import StartServer
from tests.integration.engine.test_runs import recorder
from tests.support.cluster import cluster_on
from tests.support.go_engine import stream_config


@pytest.fixture
async def guarded(bus: Bus) -> AsyncIterator[Bus]:
    tasks = [asyncio.create_task(guard_streams(bus)) for _ in range(3)]
    yield bus
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def config_of(bus: Bus, name: str) -> dict[str, Any]:
    info = await stream_info(bus, name)
    assert info is not None
    config: dict[str, Any] = info["config"]
    return config


def is_ours(config: dict[str, Any]) -> bool:
    return bool(
        config.get("allow_atomic")
        and config["discard"] == "new"
        and config["retention"] == "limits"
        and config.get("consumer_limits") == STREAMS[MESSAGES]["consumer_limits"]
        and set(config["subjects"]) == set(STREAMS[MESSAGES]["subjects"])
    )


async def put_back(bus: Bus, name: str = MESSAGES) -> None:
    async with asyncio.timeout(5):
        while not is_ours(await config_of(bus, name)):
            await asyncio.sleep(0.05)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "somebody changed" in record.getMessage()]


async def foreign_reset(bus: Bus) -> None:
    """What a Go engine's start does: create, refused; then update with a configuration that lacks what is ours."""
    await bus.api(f"STREAM.UPDATE.{MESSAGES}", stream_config(MESSAGES))
    assert not is_ours(await config_of(bus, MESSAGES))


async def test_what_a_go_engine_resets_is_put_back_and_said(guarded: Bus, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    await foreign_reset(guarded)
    await put_back(guarded)
    await asyncio.sleep(1.2)  # the others' turn to look
    # Two that look within the same few milliseconds both put it back, and both say so; nobody says it twice.
    assert 1 <= len(said(caplog)) <= 3
    [line] = set(said(caplog))
    assert "allow_atomic" in line and "consumer_limits" in line and "stream messages" in line


async def test_lost_subjects_come_back(guarded: Bus) -> None:
    config = await config_of(guarded, MESSAGES)
    await guarded.api(f"STREAM.UPDATE.{MESSAGES}", {**config, "subjects": ["resources.>"]})
    await put_back(guarded)


async def test_what_others_added_stays(guarded: Bus, caplog: pytest.LogCaptureFixture) -> None:
    config = await config_of(guarded, RESULTS)
    await guarded.api(f"STREAM.UPDATE.{RESULTS}", {**config, "description": "theirs"})
    await asyncio.sleep(1.2)
    assert (await config_of(guarded, RESULTS))["description"] == "theirs" and not said(caplog)


async def test_a_change_during_the_look_is_not_forgotten(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes after the guard has read, and its advisory before the guard is done."""
    late = asyncio.Event()

    async def meanwhile(watched: Bus, name: str, config: dict[str, Any]) -> list[str]:
        fields = await streams.put_back(watched, name, config)
        if name == MESSAGES and not late.is_set():
            await foreign_reset(bus)
            await watched.barrier()
            late.set()
        return fields

    monkeypatch.setattr(guard, "put_back", meanwhile)
    task = asyncio.create_task(guard_streams(bus))
    await asyncio.wait_for(late.wait(), 5)
    await put_back(bus)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_could_not_be_put_back_is_tried_again(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else asks for another look."""
    monkeypatch.setattr(guard, "_AGAIN", 0.1)
    tried = 0

    async def not_at_first(watched: Bus, name: str, config: dict[str, Any]) -> list[str]:
        nonlocal tried
        tried += name == MESSAGES
        if name == MESSAGES and tried == 1:
            raise BusError("no leader")
        return await streams.put_back(watched, name, config)

    monkeypatch.setattr(guard, "put_back", not_at_first)
    await foreign_reset(bus)
    task = asyncio.create_task(guard_streams(bus))
    await put_back(bus)
    assert tried > 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_dispatches_that_somebody_removed_are_issued_again(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And what bears the sequence of one is not taken for another."""
    monkeypatch.setattr("conveyor_runtime.engine.sweep._SETTLING", timedelta(0))
    started, hold, seen = asyncio.Event(), asyncio.Event(), list[str]()

    async def reconcile(payload: str, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
        seen.append(run_id)
        started.set()
        await hold.wait()
        return DriverResult(success=True)

    async with cluster_on((await start_server()).url) as cluster:
        await cluster.define("thing")
        await cluster.add(Driver("a", ("thing",), reconcile), concurrency=1)
        runs = [(await cluster.post("thing", f"n{number}")).run_id for number in range(3)]
        await asyncio.wait_for(started.wait(), 5)
        last = (await cluster.bus.api(f"STREAM.INFO.{MESSAGES}"))["state"]["last_seq"]
        await cluster.bus.api(f"STREAM.DELETE.{MESSAGES}")
        hold.set()
        for run_id in runs:
            assert (await cluster.ended(run_id, 30)).status == "Succeeded"
        assert sorted(seen) == sorted(runs), "each once"
        assert (await cluster.bus.api(f"STREAM.INFO.{MESSAGES}"))["state"]["first_seq"] > last
        assert is_ours(await config_of(cluster.bus, MESSAGES)) and "somebody removed stream messages" in caplog.text


async def test_a_control_plane_without_a_stream_is_not_ready(start_server: StartServer) -> None:
    bus = await connect((await start_server()).url, name="test")
    async with state_on(bus) as state, control_plane(bus, state, ApiSettings(port=0)) as control:
        ready = control.services.ready
        await bus.api(f"STREAM.DELETE.{MESSAGES}")
        # Whoever has the subjects keeps it from being made again.
        await bus.api("STREAM.CREATE.theirs", {"name": "theirs", "subjects": ["resources.>"]})
        async with asyncio.timeout(10):
            while ready()[0]:
                await asyncio.sleep(0.05)
        assert ready()[1]["streams"] == "missing: messages"
        await bus.api("STREAM.DELETE.theirs")
        async with asyncio.timeout(10):
            while not ready()[0]:
                await asyncio.sleep(0.05)
    await bus.close()


@pytest.mark.parametrize("name", [STATE, RESULTS])
async def test_what_was_acknowledged_is_not_made_again_as_if_nothing_had_been(guarded: Bus, name: str) -> None:
    await guarded.api(f"STREAM.DELETE.{name}")
    await asyncio.sleep(1.5)
    assert await stream_info(guarded, name) is None


async def test_what_happened_while_we_were_away_is_found(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Advisories are not stored."""
    server: EmbeddedServer = await start_server()
    async with cluster_on(server.url) as cluster:
        watched = cluster.bus
        other = await Bus.connect(server.url, name="foreign")
        await foreign_reset(other)
        await put_back(other)  # so the look at the start is over
        gone, back = asyncio.Event(), asyncio.Event()
        watched.add_connection_listener(lambda up: (back if up else gone).set())
        monkeypatch.setattr(watched._backoff, "next", lambda: 1.0)
        assert watched._nc._transport is not None
        watched._nc._transport._io_writer.close()  # type: ignore[attr-defined]
        await asyncio.wait_for(gone.wait(), 10)
        await foreign_reset(other)
        assert not back.is_set()
        await asyncio.wait_for(back.wait(), 10)
        await put_back(other)
        await other.close()


async def test_the_control_plane_and_drivers_watch(start_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    server = await start_server()
    async with cluster_on(server.url) as cluster:
        await foreign_reset(cluster.bus)
        await put_back(cluster.bus)
        await cluster.add(recorder("a", []))
    url = server.url
    bus = await Bus.connect(url, name="driver")
    async with connected_manager(recorder("a", []), url, DriverSettings()) as manager:
        task = asyncio.create_task(manager.run())
        await manager.ready.wait()
        await foreign_reset(bus)
        await put_back(bus)
        manager.drain()
        await task
    await bus.close()
