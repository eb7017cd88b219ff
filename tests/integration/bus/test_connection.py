"""Asking, publishing and listening over a connection that breaks."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from conveyor_runtime.bus import ApiError, Bus, EmbeddedServer, PayloadTooLarge
from conveyor_runtime.bus.streams import LOGS, ensure_streams, stream_info
from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.telemetry import metrics
from tests.conftest import StartServer


async def test_requests_find_their_answers(bus: Bus) -> None:
    stop = await bus.subscribe_core("ask", lambda msg: bus.publish_core(msg.reply, b"re:" + msg.data))
    answers = await asyncio.gather(*(bus.request("ask", b"%d" % i) for i in range(100)))
    assert [answer.data for answer in answers] == [b"re:%d" % i for i in range(100)]
    await stop()
    with pytest.raises(BusUnavailable, match="nobody answers"):
        await bus.request("ask", b"")


async def test_a_request_without_an_answer_ends(bus: Bus) -> None:
    stop = await bus.subscribe_core("mute", lambda msg: None)
    with pytest.raises(BusUnavailable, match=r"within 0\.05 s"):
        await bus.request("mute", timeout=0.05)
    await stop()


async def test_a_handler_that_fails_harms_nobody_else(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    def fail(msg: object) -> None:
        raise RuntimeError("boom")

    await bus.subscribe_core("bad", fail)
    bus.publish_core("bad", b"")
    await bus.barrier()
    assert (await bus.api("INFO"))["streams"] >= 1
    assert "handler failed" in caplog.text


async def test_api_errors_carry_code_and_words(bus: Bus) -> None:
    with pytest.raises(ApiError) as caught:
        await bus.api("STREAM.INFO.nothing")
    assert caught.value.code == 10059
    assert caught.value.description == "stream not found"


async def test_publish_tells_duplicates(bus: Bus) -> None:
    first = await bus.publish("logs.a", b"x", msg_id="one")
    again = await bus.publish("logs.a", b"x", msg_id="one")
    assert (first.duplicate, again.duplicate) == (False, True)
    assert first.seq == again.seq
    with pytest.raises(ApiError, match="no stream"):
        await bus.publish("nowhere", b"", deadline=1.0)


async def test_too_much_is_refused_before_it_closes_the_connection(bus: Bus) -> None:
    since = bus.connected_since
    with pytest.raises(PayloadTooLarge):
        await bus.publish("logs.a", b"x" * (bus.max_payload - 10), headers={"A": "b"})
    dropped = _dropped()
    bus.publish_core("live", b"x" * (bus.max_payload + 1))
    assert _dropped() == dropped + 1
    await bus.barrier()
    assert bus.connected_since == since


async def test_a_cancelled_wait_does_not_disturb_the_connection(bus: Bus) -> None:
    since = bus.connected_since
    stop = await bus.subscribe_core("mute", lambda msg: None)
    stop_echo = await bus.subscribe_core("ask", lambda msg: bus.publish_core(msg.reply, b"re:" + msg.data))
    for number in range(20):
        tasks = [
            asyncio.create_task(bus.request("mute", timeout=5)),
            asyncio.create_task(bus.request("ask", b"given up", timeout=5)),
            asyncio.create_task(bus.barrier()),
        ]
        for _ in range(number % 4):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert tasks[0].cancelled()
        assert (await bus.request("ask", b"%d" % number)).data == b"re:%d" % number
    await bus.barrier()
    assert bus.connected_since == since
    await stop()
    await stop_echo()


async def test_a_connect_that_is_cancelled_ends_whenever_that_comes(nats_server: EmbeddedServer) -> None:
    """Also at the very moment of an answer, where the client swallows it: who waits for the end waits for ever."""
    survived = 0
    for number in range(100):
        connecting = asyncio.create_task(Bus.connect(nats_server.url, name="test"))
        for _ in range(number % 30):
            await asyncio.sleep(0.0002 if number % 2 else 0)
        connecting.cancel()
        await asyncio.wait([connecting])
        if not connecting.cancelled():
            await connecting.result().close()
            survived += connecting.cancelling()
    assert survived == 0


async def test_an_outage_is_told_and_healed(start_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "conveyor_runtime.bus")
    server = await start_server()
    bus = await Bus.connect(server.url, name="test")
    await ensure_streams(bus)
    heard: list[bool] = []
    states: list[bool] = []
    bus.add_connection_listener(lambda up: states.append(bus.connected))
    went, back = asyncio.Event(), asyncio.Event()
    bus.add_connection_listener(heard.append)
    bus.add_connection_listener(lambda up: (back if up else went).set())
    got: asyncio.Queue[bytes] = asyncio.Queue()
    await bus.subscribe_core("news", lambda msg: got.put_nowait(msg.data))
    await bus.subscribe_core("mute", lambda msg: None)
    since = bus.connected_since
    asked = asyncio.create_task(bus.request("mute", timeout=30))
    await asyncio.sleep(0)
    await bus.barrier()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await asyncio.wait_for(went.wait(), 5)
    with pytest.raises(BusUnavailable, match="outcome is unknown"):
        await asked
    dropped = _dropped()
    bus.publish_core("news", b"lost")
    assert _dropped() == dropped + 1
    with pytest.raises(BusUnavailable):
        await bus.request("mute")
    await asyncio.wait_for(back.wait(), 5)
    assert heard == states == [False, True]
    assert caplog.text.count("bus: connected again after ") == 1
    assert since is not None
    assert bus.connected_since is not None
    assert bus.connected_since > since
    bus.publish_core("news", b"after")
    assert await asyncio.wait_for(got.get(), 5) == b"after"
    await bus.close()
    assert bus.closed.is_set()
    with pytest.raises(BusUnavailable, match="closed"):
        await bus.publish("logs.a", b"", msg_id="x")


async def test_a_publish_with_an_id_survives_a_restart_once(start_server: StartServer) -> None:
    server = await start_server(sync="always")
    bus = await Bus.connect(server.url, name="test")
    await ensure_streams(bus)
    tasks = [asyncio.create_task(bus.publish("logs.a", b"x", msg_id=f"m{i}", deadline=20)) for i in range(50)]
    await asyncio.sleep(0)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await asyncio.gather(*tasks)
    info = await stream_info(bus, LOGS)
    assert info is not None
    assert info["state"]["messages"] == 50
    await bus.close()


async def test_closing_fails_who_waits(bus: Bus) -> None:
    await bus.subscribe_core("mute", lambda msg: None)
    asked = asyncio.create_task(bus.request("mute", timeout=30))
    await bus.barrier()
    await bus.close()
    with pytest.raises(BusUnavailable):
        await asked


async def test_closing_sends_first_what_was_written(nats_server: EmbeddedServer, bus: Bus) -> None:
    """Such as the acks of a process that ends."""
    got: asyncio.Queue[bytes] = asyncio.Queue()
    await bus.subscribe_core("news", lambda msg: got.put_nowait(msg.data))
    await bus.barrier()
    ending = await Bus.connect(nats_server.url, name="ending")
    ending.publish_core("news", b"the last")
    await ending.close()
    assert await asyncio.wait_for(got.get(), 5) == b"the last"


async def test_a_client_that_stops_reconnecting_is_noticed(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor_runtime.bus.link.WATCH", 0.1)
    server = await start_server()
    bus = await Bus.connect(server.url, name="test")
    went = asyncio.Event()
    bus.add_connection_listener(lambda up: went.set())
    await server.stop()
    await asyncio.wait_for(went.wait(), 5)
    await asyncio.sleep(0)
    assert bus._nc._reconnection_task is not None
    bus._nc._reconnection_task.cancel()
    await asyncio.wait_for(bus.closed.wait(), 5)
    with pytest.raises(BusUnavailable, match="closed"):
        await bus.wait_connected(5)


def _dropped() -> float:
    return metrics.REGISTRY.get_sample_value("conveyor_bus_dropped_messages_total") or 0.0
