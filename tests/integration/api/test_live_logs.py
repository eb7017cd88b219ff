"""A run's log followed over real HTTP: every line once, in order, to the end, whatever breaks in between."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx2
import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from conveyor_runtime.bus import Bus
from conveyor_runtime.bus.streams import LOGS, ensure_streams, list_consumers
from conveyor_runtime.client import Client, NotFoundError, UnreachableError
from conveyor_runtime.models import Status
from conveyor_runtime.telemetry import metrics
from tests.conftest import StartServer
from tests.integration.api.conftest import Serving, until


def followers(transport: str) -> float:
    return metrics.REGISTRY.get_sample_value("conveyor_log_followers", {"transport": transport}) or 0.0


async def events(http: httpx2.AsyncClient, path: str, **headers: str) -> AsyncGenerator[httpx2.ServerSentEvent]:
    async with http.sse(path, headers={key.replace("_", "-"): value for key, value in headers.items()}) as source:
        assert source.response.status_code == 200
        async for event in source:
            yield event


async def test_from_the_middle(serving: Serving, http: httpx2.AsyncClient) -> None:
    """Cut off after some lines, more are stored meanwhile, and the follower goes on where it was."""
    run_id = await serving.begin()
    for number in range(5):
        await serving.line(run_id, str(number))
    seen = []
    async with aclosing(events(http, f"/logs/{run_id}")) as stream:
        async for event in stream:
            seen.append(event)
            if len(seen) == 3:
                break
    await until(lambda: followers("sse") == 0)
    for number in range(5, 8):
        await serving.line(run_id, str(number))
    async with aclosing(events(http, f"/logs/{run_id}", last_event_id=seen[-1].id)) as stream:
        async for event in stream:
            seen.append(event)
            if len(seen) == 8:
                await serving.line(run_id, "8")
                await serving.end(run_id, Status.FAILED)
    lines, end = seen[:-1], seen[-1]
    assert [orjson.loads(event.data)["message"] for event in lines] == [str(number) for number in range(9)]
    assert (end.event, orjson.loads(end.data)) == ("end", {"status": "Failed"})
    await until(lambda: followers("sse") == 0)


async def test_many_followers_of_many_lines(serving: Serving, http: httpx2.AsyncClient) -> None:
    run_id = await serving.begin()

    async def follow() -> list[str]:
        return [event.data async for event in events(http, f"/logs/pipeline/{run_id}")]

    following = [asyncio.create_task(follow()) for _ in range(5)]
    await asyncio.gather(*(serving.line(run_id, str(number)) for number in range(1000)))
    await serving.end(run_id)
    first, *others = await asyncio.gather(*following)
    assert len(first) == 1001
    assert all(other == first for other in others)


async def test_websocket_twin(serving: Serving, http: httpx2.AsyncClient) -> None:
    """The same path, lines and end as SSE; frames carry the id."""
    run_id = await serving.begin()
    for number in range(4):
        await serving.line(run_id, str(number), "d" if number % 2 else "other")
    url = serving.url.replace("http", "ws")
    async with connect(f"{url}/logs/{run_id}") as socket:
        frames = [orjson.loads(await socket.recv()) for _ in range(4)]
        await serving.line(run_id, "live")
        frames.append(orjson.loads(await socket.recv()))
        await serving.end(run_id)
        assert orjson.loads(await socket.recv()) == {"event": "end", "status": "Succeeded"}
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000
    sent = [event async for event in events(http, f"/logs/{run_id}")]
    assert frames == [{**orjson.loads(event.data), "id": int(event.id)} for event in sent[:-1]]
    after = str(frames[2]["id"])
    for query, headers in ((f"?after={after}", {}), ("", {"Last-Event-ID": after})):
        async with connect(f"{url}/logs/pipeline/{run_id}/{query}", additional_headers=headers) as socket:
            assert [orjson.loads(frame).get("message") async for frame in socket] == ["3", "live", None]
    async with connect(f"{url}/logs/streams/other/{run_id}") as socket:
        assert [orjson.loads(frame).get("message") async for frame in socket] == ["0", "2", None]


async def test_websocket_of_an_unknown_run(serving: Serving) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{serving.url.replace('http', 'ws')}/logs/none")
    assert refused.value.response.status_code == 404
    assert orjson.loads(refused.value.response.body or b"")["title"] == "Not Found"


async def test_a_websocket_that_goes_away_is_noticed(serving: Serving) -> None:
    run_id = await serving.begin()
    socket = await connect(f"{serving.url.replace('http', 'ws')}/logs/{run_id}")
    await until(lambda: followers("websocket") == 1)
    await serving.line(run_id, "0")
    await socket.recv()
    assert len(await list_consumers(serving.bus, LOGS)) == 1
    await socket.close()
    await until(lambda: followers("websocket") == 0)
    assert await list_consumers(serving.bus, LOGS) == [], "nothing reads on for a client that is gone"


async def test_draining_closes_live_logs(serving: Serving, http: httpx2.AsyncClient) -> None:
    """They end at once and without an end event: their followers are to come back."""
    run_id = await serving.begin()
    await serving.line(run_id, "0")
    stream = events(http, f"/logs/{run_id}")
    assert (await anext(stream)).event == "message"
    socket = await connect(f"{serving.url.replace('http', 'ws')}/logs/{run_id}")
    await socket.recv()
    async with asyncio.timeout(4):
        await serving.stop()
        assert [event async for event in stream] == []
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012


async def test_client_follows_through_a_restart(serving: Serving, client: Client) -> None:
    run_id = await serving.begin()
    await serving.line(run_id, "0")
    lines = client.follow_logs(run_id)
    first = await anext(lines)
    await serving.line(run_id, "1")
    second = await anext(lines)
    await serving.stop()
    waiting = asyncio.create_task(anext(lines))
    await serving.line(run_id, "2")
    await serving.line(run_id, "3")
    await serving.start()
    rest = [await waiting]
    await serving.line(run_id, "4")
    await serving.end(run_id)
    rest += [line async for line in lines]
    assert [line.message for line in (first, second, *rest)] == ["0", "1", "2", "3", "4"]
    assert (await client.wait_run(run_id, timeout=5)).status is Status.SUCCEEDED


async def test_client_sees_a_line_stored_twice_once(serving: Serving, client: Client) -> None:
    """Its writer heard no answer and wrote again, too late for the stream to tell: across a reconnect, too."""
    run_id = await serving.begin()
    await serving.line(run_id, "0")
    lines = client.follow_logs(run_id)
    assert (await anext(lines)).message == "0"
    await serving.stop()
    line = {"runid": run_id, "driver": "d", "message": "0", "step": "d", "attempt": 1, "seq": 1}
    await serving.bus.publish(f"logs.{run_id}", orjson.dumps(line))
    await serving.start()
    await serving.end(run_id)
    assert [line.message async for line in lines] == []


async def test_client_gives_up_in_the_end(serving: Serving, client: Client) -> None:
    run_id = await serving.begin()
    await serving.line(run_id, "0")
    lines = client.follow_logs(run_id, patience=0.3)
    await anext(lines)
    await serving.stop()
    with pytest.raises(UnreachableError, match="conveyor up"):
        await anext(lines)
    await serving.start()
    with pytest.raises(NotFoundError):
        await anext(client.follow_logs("none"))


async def test_through_a_killed_bus(start_server: StartServer) -> None:
    """nats-server is killed under a follower: it waits, and goes on without gap or repeat."""
    server = await start_server(sync="always")
    bus = await Bus.connect(server.url, name="test")
    await ensure_streams(bus)
    serving = Serving(bus)
    await serving.start()
    async with Client(serving.url) as client:
        run_id = await serving.begin()
        await serving.line(run_id, "0")
        lines = client.follow_logs(run_id)
        assert (await anext(lines)).message == "0"
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: not bus.connected)
        assert await client.ready() is False
        await bus.wait_connected(20)
        for number in range(1, 4):
            await serving.line(run_id, str(number))
        await serving.end(run_id)
        assert [line.message async for line in lines] == ["1", "2", "3"]
    await serving.stop()
    await bus.close()
