"""The API over real HTTP, store and bus: the client's whole round, sizes, races, tokens, and two servers at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from conveyor_runtime.bus import Bus
from conveyor_runtime.client import (
    Client,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    UnauthorizedError,
    UnreachableError,
)
from conveyor_runtime.models import Status
from tests.integration.api.conftest import Serving, free_port

JSON = {"content-type": "application/json"}


async def test_everything_a_client_can_ask(serving: Serving, client: Client) -> None:
    assert await client.ready()
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    definition = await client.create_definition({"name": "app", "schema": schema})
    assert (definition.name, definition.schema_) == ("app", schema)
    with pytest.raises(ConflictError, match="exists already"):
        await client.create_definition({"name": "app"})
    assert (await client.apply_definition({"name": "app", "schema": schema})).id == definition.id
    assert [it.name for it in await client.list_definitions()] == ["app", "pipeline"]

    pipeline = await client.apply_pipeline({"name": "p", "resource": "app", "steps": [{"driver": "d"}]})
    assert [(step.id, step.driver) for step in pipeline.steps] == [("d", "d")]
    changed = {"resource": "app", "steps": [{"driver": "d", "timeout": "1m"}], "finally": [{"driver": "e"}]}
    assert (await client.update_pipeline("p", changed)).revision == 2
    assert (await client.get_pipeline("p")).steps[0].timeout == 60.0
    assert [it.finally_[0].driver for it in await client.list_pipelines()] == ["e"]

    document = {"name": "a", "resource": "app", "pipeline": "p", "spec": {"x": 1}}
    created = await client.apply(document)
    assert (created.created, created.changed, created.version) == (True, True, "1")
    assert not (await client.apply(document)).changed
    with pytest.raises(ConflictError):
        await client.create(document)
    with pytest.raises(InvalidRequestError, match="/spec/x") as invalid:
        await client.update("app", "a", {"spec": {"x": "one"}})
    assert [problem.pointer for problem in invalid.value.problems] == ["/spec/x"]
    updated = await client.update("app", "a", {"pipeline": "p", "spec": {"x": 2}})
    assert updated.run_id
    assert [entry.run_id for entry in updated.queue] == [updated.run_id]
    assert (await client.get_version("app", "a", 1)).spec == {"x": 1}
    assert (await client.get_resource("app", "a")).metadata["version"] == "2"
    assert [it.name for it in await client.list_resources("app")] == ["a"]
    assert len(await client.list_resources()) == 2

    assert [it.run_id for it in await client.list_runs(type="app")] == [updated.run_id, created.run_id]
    assert [it.run_id for it in await client.list_runs(limit=1)] == [updated.run_id]
    run = await client.get_run(created.run_id)
    assert (run.status, run.resource.name, run.steps[0].id) == (Status.PENDING, "a", "d")
    assert (await client.cancel_run(created.run_id, "no more")).status is Status.CANCELLING
    assert [it.run_id for it in await client.list_runs(status=[Status.SUCCEEDED, Status.FAILED])] == []
    assert await client.drivers() == []

    for number in range(3):
        await serving.line(created.run_id, str(number))
    assert [line.message for line in await client.logs(created.run_id)] == ["0", "1", "2"]
    first = (await client.logs(created.run_id))[0]
    assert [line.message for line in await client.logs(created.run_id, after=first.id)] == ["1", "2"]

    with pytest.raises(ConflictError, match="pipeline p is used by "):
        await client.delete_pipeline("p")
    deleted = await client.delete_resource("app", "a")
    assert not deleted.gone
    assert (await client.delete_pipeline("p")).gone
    await client.delete_definition("app")
    for missing in (client.get_pipeline("p"), client.get_definition("app"), client.get_run("x"), client.get_run("")):
        with pytest.raises(NotFoundError):
            await missing


async def test_direct_run_ends(serving: Serving, client: Client) -> None:
    run_id = await serving.begin("a")
    await serving.end(run_id)
    run = await client.wait_run(run_id, timeout=10)
    assert run.status is Status.SUCCEEDED
    await serving.settled("app", "a")
    resource = await client.get_resource("app", "a")
    assert (resource.active_run, resource.last_run, resource.observed_generation) == (None, run_id, 1)


async def test_a_rerun_is_a_run_of_its_own(serving: Serving, client: Client) -> None:
    first = await serving.begin("a")
    await serving.end(first)
    await serving.settled("app", "a")
    again = await client.rerun(first)
    assert (again.event, again.status) == ("create", Status.PENDING)
    await serving.end(again.run_id)
    assert (await client.wait_run(again.run_id, timeout=10)).status is Status.SUCCEEDED
    await serving.settled("app", "a")
    await client.delete_resource("app", "a")
    with pytest.raises(NotFoundError, match="app/a"):
        await client.rerun(first)


async def test_ten_megabytes(serving: Serving, http: httpx2.AsyncClient) -> None:
    """Refused without being read, and the server is as well as before."""
    for content in (b"x" * (10 << 20), b'{"a": "' + b"x" * (10 << 20) + b'"}'):
        answer = await http.post("/resources", content=content, headers=JSON)
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
        assert (await http.post("/resources", content=content)).status_code == 400, "it was not even read"
        assert (await http.post("/nope", content=content, headers=JSON)).status_code == 404

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(160):
            yield b"x" * (1 << 16)

    assert (await http.post("/resources", content=chunks(), headers=JSON)).status_code == 413
    assert (await http.get("/livez")).status_code == 200


async def test_what_is_no_http(serving: Serving) -> None:
    for raw in (
        b"\x00\x01\x02\r\n\r\n",
        b"POST /resources HTTP/1.1\r\ncontent-length: x\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
        writer.write(raw)
        assert (await asyncio.wait_for(reader.read(), 5))[:12] in (b"HTTP/1.1 400", b""), raw
        writer.close()
        await writer.wait_closed()
    # One that begins a request and says no more keeps nobody from being served.
    with socket.create_connection(("127.0.0.1", serving.port)) as idle:
        idle.sendall(
            b"POST /resources HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        )
        async with httpx2.AsyncClient(base_url=serving.url, trust_env=False) as http:
            assert (await http.get("/livez")).status_code == 200


async def test_concurrent_puts(serving: Serving, http: httpx2.AsyncClient, client: Client) -> None:
    await client.apply_definition({"name": "app"})
    await client.create({"name": "a", "resource": "app", "spec": {"x": 0}})
    answers = await asyncio.gather(*(http.put("/resources/app/a", json={"spec": {"x": x}}) for x in range(1, 11)))
    assert {answer.status_code for answer in answers} == {200}
    versions = {int(answer.json()["metadata"]["version"]): answer.json()["spec"] for answer in answers}
    assert sorted(versions) == list(range(2, 12))
    assert (await client.get_resource("app", "a")).spec == versions[11]
    for version, spec in versions.items():
        assert (await client.get_version("app", "a", version)).spec == spec


async def test_two_servers_read_each_others_writes(nats_server, serving: Serving, client: Client) -> None:
    """A list on one waits for the revision that another answered."""
    await client.apply_definition({"name": "app"})
    bus = await Bus.connect(nats_server.url, name="second")
    second = Serving(bus)
    await second.start()
    async with httpx2.AsyncClient(base_url=second.url, trust_env=False) as there:
        for number in range(20):
            document = {"name": f"r{number}", "resource": "app", "spec": {}}
            async with httpx2.AsyncClient(base_url=serving.url, trust_env=False) as here:
                written = await here.post("/resources", json=document)
            revision = {"Conveyor-Revision": written.headers["conveyor-revision"]}
            listed = await there.get("/resources?type=app&limit=500", headers=revision)
            assert len(listed.json()["items"]) == number + 1
    await second.stop()
    await bus.close()


async def test_token(bus: Bus) -> None:
    serving = Serving(bus, token="s3cret")
    await serving.start()
    socket_url = serving.url.replace("http", "ws")
    run_id = await serving.begin()
    async with Client(serving.url) as stranger, Client(serving.url, "s3cret") as friend:
        with pytest.raises(UnauthorizedError, match="Bearer"):
            await stranger.list_runs()
        with pytest.raises(UnauthorizedError):
            await anext(stranger.follow_logs(run_id))
        assert await stranger.ready()
        assert len(await friend.list_runs()) == 1
        for query in ("", "?token=wrong"):
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"{socket_url}/logs/{run_id}{query}")
            assert refused.value.response.status_code == 401
        async with connect(f"{socket_url}/logs/{run_id}?token=s3cret") as one:
            await serving.line(run_id, "hello")
            assert '"hello"' in str(await one.recv())
        async with connect(f"{socket_url}/logs/{run_id}", additional_headers={"Authorization": "Bearer s3cret"}) as two:
            assert '"hello"' in str(await two.recv())
    await serving.stop()


async def test_nobody_there() -> None:
    port = free_port()
    async with Client(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(UnreachableError, match=f"is `conveyor up` running\\? tried http://127.0.0.1:{port}"):
            await client.create({"name": "a"})
