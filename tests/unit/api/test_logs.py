"""Logs: asked for, added, followed without gap or repeat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conveyor_runtime.api import follow as follow_module
from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.store.logs import LogEntry
from conveyor_runtime.telemetry import metrics
from tests.unit.api.world import World, events_of


@pytest.fixture
async def run_id(world: World) -> str:
    await world.define()
    await world.register("d", "app")
    await world.post("/pipelines", {"name": "p", "resource": "app", "steps": [{"driver": "d"}]})
    return await world.create("a", pipeline="p")


def followers() -> float:
    return metrics.REGISTRY.get_sample_value("conveyor_log_followers", {"transport": "sse"}) or 0.0


async def test_read(world: World, run_id: str) -> None:
    for number in range(5):
        await world.line(run_id, f"line {number}", "builder" if number % 2 else "cloner")
    await world.line("other", "not this")

    async def messages(query: str) -> list[str]:
        return [line["message"] for line in await world.get(f"/logs{query}")]

    assert len(await messages("")) == 6
    assert await messages(f"?runid={run_id}") == [f"line {number}" for number in range(5)]
    assert await messages(f"?runid={run_id}&driver=builder") == ["line 1", "line 3"]
    assert await messages("?pipeline=p&driver=builder") == ["line 1", "line 3"]
    assert await messages("?pipeline=q") == []
    assert await messages("?runid=none") == await messages("?runid=a.b") == []
    assert await messages("?limit=2") == ["line 4", "not this"]
    assert await messages(f"?runid={run_id}&limit=2") == ["line 3", "line 4"]
    first = (await world.get(f"/logs?runid={run_id}"))[0]
    assert first == {
        "runid": run_id,
        "driver": "cloner",
        "pipeline": "",
        "timestamp": "1",
        "message": "line 0",
        "id": 1,
    }


async def test_read_page_by_page(world: World, run_id: str) -> None:
    for number in range(5):
        await world.line(run_id, str(number))
    after, pages = "0", []
    while after:
        answer = await world.http.get(f"/logs?runid={run_id}&limit=2&after={after}")
        pages.append([line["message"] for line in answer.json()])
        after = answer.headers.get("conveyor-next", "")
    assert pages == [["0", "1"], ["2", "3"], ["4"]]


async def test_add(world: World) -> None:
    line = {
        "runid": "r-1",
        "driver": "d",
        "timestamp": 1795253061,
        "message": "by hand",
        "seq": 3,
        "labels": {"a": "b"},
    }
    answer = await world.http.post("/logs/", json=line)
    assert (answer.status_code, answer.text) == (201, "Created")
    [stored] = [entry.line for entry in world.logs.entries]
    assert (stored.message, stored.timestamp, stored.labels) == ("by hand", "1795253061", {"a": "b"})
    assert stored.seq is None, "a number would make readers drop it, or others"
    assert stored.at is not None
    assert (await world.http.post("/logs", json={"run_id": "r-1", "message": "x"})).status_code == 201
    for runid in ("", "a.b", ">", "*"):
        assert (await world.http.post("/logs", json={"runid": runid, "message": "x"})).status_code == 400


async def test_follow_until_the_run_ends(world: World, run_id: str) -> None:
    await world.line(run_id, "early")
    following = asyncio.create_task(world.http.get(f"/logs/{run_id}"))
    while followers() == 0:
        await asyncio.sleep(0)
    await world.line(run_id, "live")
    await world.line("other", "not this")
    await world.run_steps(run_id)
    answer = await following
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-store"
    events = events_of(answer.text)
    assert [(event, id_) for event, id_, _ in events] == [("", "1"), ("", "2"), ("end", "2")]
    assert [data.get("message") for _, _, data in events] == ["early", "live", None]
    assert events[-1][2] == {"status": "Succeeded"}
    assert "id" not in events[0][2]
    assert followers() == 0


@pytest.mark.parametrize("path", ["/logs/{}", "/logs/pipeline/{}/", "/logs/streams/builder/{}"])
async def test_resume(world: World, run_id: str, path: str) -> None:
    for number in range(6):
        await world.line(run_id, str(number))
    await world.run_steps(run_id)
    url = path.format(run_id)
    for request in ({"params": {"after": 3}}, {"headers": {"Last-Event-ID": "3"}}):
        events = events_of((await world.http.get(url, **request)).text)
        assert [data.get("message") for _, _, data in events] == ["3", "4", "5", None]
    both = await world.http.get(url, params={"after": 1}, headers={"Last-Event-ID": "5"})
    assert [id_ for _, id_, _ in events_of(both.text)] == ["6", "6"]
    # Behind the last line there is only the end: whoever lost just that gets it.
    nothing = events_of((await world.http.get(url, params={"after": 6})).text)
    assert [event for event, _, _ in nothing] == ["end"]
    assert (await world.http.get(url, headers={"Last-Event-ID": "x"})).status_code == 400


async def test_follow_one_driver(world: World, run_id: str) -> None:
    await world.line(run_id, "mine", "builder")
    await world.line(run_id, "not mine", "cloner")
    await world.run_steps(run_id)
    events = events_of((await world.http.get(f"/logs/streams/builder/{run_id}")).text)
    assert [data.get("message") for _, _, data in events] == ["mine", None]


async def test_unknown_run(world: World) -> None:
    for path in ("/logs/none", "/logs/pipeline/none", "/logs/streams/d/none", "/logs/a.b"):
        problem = await world.get(path, 404)
        assert path.rpartition("/")[2] in problem["detail"]
    assert followers() == 0
    assert not world.app.state.ends._waiting


async def test_signs_of_life(world: World, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while there are lines, but only of drivers that were not asked for."""
    monkeypatch.setattr(follow_module, "HEARTBEAT", 0.01)
    found = await world.state.run(run_id)
    assert found is not None
    feed = follow_module.follow(world.services, world.app.state.ends, found.record, driver="quiet")
    assert await anext(feed) is None
    beat = asyncio.ensure_future(anext(feed))
    while not beat.done():
        await world.line(run_id, "noise", "loud")
        await asyncio.sleep(0)
    assert beat.result() is None
    await world.line(run_id, "mine", "quiet")
    await world.run_steps(run_id)
    rest = [item async for item in feed if item is not None]
    assert isinstance(rest[0], list)
    assert [entry.line.message for entry in rest[0]] == ["mine"]
    assert rest[1:] == ["Succeeded"]


async def test_a_draining_server_ends_without_end(world: World, run_id: str) -> None:
    await world.line(run_id, "early")
    found = await world.state.run(run_id)
    assert found is not None
    feed = follow_module.follow(world.services, world.app.state.ends, found.record)
    assert isinstance(await anext(feed), list)
    world.services.closing.set()
    assert [item async for item in feed] == []
    assert events_of((await world.http.get(f"/logs/{run_id}")).text) == []


async def test_a_lost_bus_ends_without_end(world: World, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.run_steps(run_id)
    read_run = world.state.run

    async def once(run: str):
        monkeypatch.setattr(world.state, "run", gone)
        return await read_run(run)

    async def gone(run: str):
        raise BusUnavailable("not connected")

    monkeypatch.setattr(world.state, "run", once)
    answer = await world.http.get(f"/logs/{run_id}")
    assert answer.status_code == 200
    assert events_of(answer.text) == []
    assert (await world.http.get(f"/logs/{run_id}")).status_code == 503


async def test_no_more_is_read_ahead_than_a_slow_client_is_owed(
    world: World, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log of a gigabyte must not lie in memory because somebody reads it over a bad line."""
    monkeypatch.setattr(follow_module, "MOST_AHEAD", 10)
    monkeypatch.setattr(follow_module, "GATHER", 0.0)
    for number in range(35):
        await world.line(run_id, str(number))
    await world.run_steps(run_id)
    read, everything = 0, world.logs.follow

    async def counted(*arguments: Any, **options: Any) -> AsyncIterator[LogEntry]:
        nonlocal read
        async for entry in everything(*arguments, **options):
            read += 1
            yield entry

    monkeypatch.setattr(world.logs, "follow", counted)
    found = await world.state.run(run_id)
    assert found is not None
    taken: list[str] = []
    async for item in follow_module.follow(world.services, world.app.state.ends, found.record):
        if isinstance(item, list):
            assert len(item) <= 10
            taken += [entry.line.message for entry in item]
            for _ in range(10):  # the client is slow
                await asyncio.sleep(0)
            assert read <= len(taken) + 10
    assert taken == [str(number) for number in range(35)]


async def test_ends_are_forgotten(world: World, run_id: str) -> None:
    following = asyncio.create_task(world.http.get(f"/logs/{run_id}"))
    while followers() == 0:
        await asyncio.sleep(0)
    following.cancel()
    await asyncio.wait({following})
    while followers() > 0:
        await asyncio.sleep(0)
    assert not world.app.state.ends._waiting
