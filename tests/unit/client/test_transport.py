"""What the client sends again and what it never does, what it tells, and how it follows a log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from conveyor_runtime.client import (
    Client,
    ClientError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    ServerFaultError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from conveyor_runtime.client import follow as follow_module
from conveyor_runtime.errors import ConfigError, ConveyorError
from tests.unit.api.world import World

RUN = {
    "run_id": "r",
    "status": "Running",
    "resource": {"resource": "app", "name": "a"},
    "created_at": "2026-01-01T00:00:00Z",
}
Answer = httpx2.Response | Exception


class Server:
    """Answers with what it is given, in order, the last one for ever; counts."""

    def __init__(self, *answers: Answer | Callable[[httpx2.Request], httpx2.Response]) -> None:
        self.answers = list(answers)
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer

    def client(self, token: str = "") -> Client:
        return Client("http://api:1", token, transport=httpx2.MockTransport(self))


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No pause is waited for; how long each would have been."""
    taken: list[float] = []
    sleep = asyncio.sleep

    async def skip(seconds: float) -> None:
        taken.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", skip)
    return taken


def problem(status: int, detail: str = "why", **extra: object) -> httpx2.Response:
    return httpx2.Response(status, json={"detail": detail, "error": detail, **extra})


DOCUMENT = {"name": "a", "resource": "app", "spec": {}}
CONNECT, READ = httpx2.ConnectError("refused"), httpx2.ReadError("reset")
WRITTEN = httpx2.Response(201, json={"name": "a", "runid": "r", "version": "1"})


@pytest.mark.parametrize("error", [CONNECT, httpx2.ConnectTimeout("slow")])
async def test_what_never_left_is_sent_again(error: Exception, pauses: list[float]) -> None:
    server = Server(error, error, WRITTEN)
    async with server.client() as client:
        assert (await client.create(DOCUMENT)).run_id == "r"
    assert len(server.requests) == 3
    assert 0 < pauses[0] <= 0.1
    assert sum(pauses) < 1


async def test_but_not_for_ever(pauses: list[float]) -> None:
    server = Server(CONNECT)
    async with server.client() as client:
        with pytest.raises(UnreachableError, match=r"is `conveyor up` running\? tried http://api:1 \(refused\)"):
            await client.get_run("r")
    assert len(server.requests) == 5
    assert sum(pauses) < 3


@pytest.mark.parametrize("error", [READ, httpx2.ReadTimeout("slow"), httpx2.RemoteProtocolError("cut")])
async def test_a_write_that_may_have_arrived_is_not_sent_again(error: Exception) -> None:
    for call in ("create", "apply"):
        server = Server(error, WRITTEN)
        async with server.client() as client:
            with pytest.raises(UnreachableError, match="whether it was carried out is unknown"):
                await getattr(client, call)(DOCUMENT)
        assert len(server.requests) == 1


@pytest.mark.parametrize("answer", [READ, httpx2.RemoteProtocolError("cut"), problem(503)])
async def test_what_reads_or_is_the_same_twice_is_sent_again(answer: Answer) -> None:
    server = Server(answer, httpx2.Response(200, json=RUN))
    async with server.client() as client:
        assert (await client.get_run("r")).run_id == "r"
        server.answers[:0] = [answer]
        assert (await client.cancel_run("r")).run_id == "r"
    assert len(server.requests) == 4


async def test_an_unavailable_server_is_not_asked_to_write_twice() -> None:
    server = Server(problem(503, "not connected to the bus"), WRITTEN)
    async with server.client() as client:
        with pytest.raises(UnavailableError, match="http://api:1 cannot serve now: not connected to the bus"):
            await client.create(DOCUMENT)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequestError),
        (401, UnauthorizedError),
        (403, UnauthorizedError),
        (404, NotFoundError),
        (409, ConflictError),
        (413, InvalidRequestError),
        (422, InvalidRequestError),
        (418, InvalidRequestError),
        (500, ServerFaultError),
        (503, UnavailableError),
        (302, ServerFaultError),
    ],
)
async def test_errors(status: int, kind: type[ClientError]) -> None:
    server = Server(problem(status, errors=[{"pointer": "/spec/x", "detail": "must be"}]))
    async with server.client() as client:
        with pytest.raises(kind, match="why") as raised:
            await client.create(DOCUMENT)
    assert isinstance(raised.value, ConveyorError)
    assert raised.value.status == status
    assert [str(it) for it in raised.value.problems] == ["/spec/x: must be"]


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(404, text="<html>nginx</html>"),
        httpx2.Response(500, json=["odd"]),
        httpx2.Response(502, json={"errors": 5}),
    ],
)
async def test_what_is_no_conveyor_says_so(answer: httpx2.Response) -> None:
    async with Server(answer).client() as client:
        with pytest.raises(ClientError, match="is this its address"):
            await client.get_run("r")


@pytest.mark.parametrize("answer", [httpx2.Response(200, text="hello"), httpx2.Response(200, json={"a": 1})])
async def test_an_answer_that_cannot_be_understood(answer: httpx2.Response) -> None:
    async with Server(answer).client() as client:
        with pytest.raises(ServerFaultError):
            await client.get_run("r")


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://h", "http://", "http://h:port", "unix:///x"])
def test_addresses_that_cannot_work(url: str) -> None:
    with pytest.raises(ConfigError):
        Client(url)


async def test_an_address_is_shown_without_its_password() -> None:
    async with Client("http://u:p4ssword@api:1", transport=httpx2.MockTransport(Server(CONNECT))) as client:
        with pytest.raises(UnreachableError) as raised:
            await client.get_run("r")
    assert "p4ssword" not in str(raised.value)


async def test_token_and_names_are_sent_as_they_must() -> None:
    server = Server(httpx2.Response(200, json=RUN))
    async with server.client(token="s3cret") as client:
        await client.get_run("../resources/a?b#c")
    assert server.requests[0].headers["authorization"] == "Bearer s3cret"
    assert server.requests[0].url.raw_path == b"/runs/..%2Fresources%2Fa%3Fb%23c"


async def test_lists_carry_the_revision_of_our_writes() -> None:
    written = httpx2.Response(201, json={"name": "a"}, headers={"Conveyor-Revision": "17"})
    older = httpx2.Response(201, json={"name": "a"}, headers={"Conveyor-Revision": "9"})
    empty = httpx2.Response(200, json={"items": [], "next_cursor": ""})
    server = Server(empty, written, older, empty)
    async with server.client() as client:
        await client.list_runs()
        await client.create(DOCUMENT)
        await client.create(DOCUMENT)
        await client.list_runs()
    assert [request.headers.get("conveyor-revision") for request in server.requests] == [None, None, None, "17"]


async def test_lists_are_read_page_by_page() -> None:
    def page(request: httpx2.Request) -> httpx2.Response:
        start = int(request.url.params.get("cursor", "0"))
        size = min(int(request.url.params["limit"]), 3)
        items = [{**RUN, "run_id": str(number)} for number in range(start, min(start + size, 7))]
        return httpx2.Response(200, json={"items": items, "next_cursor": str(start + size) if start + size < 7 else ""})

    server = Server(page)
    async with server.client() as client:
        assert [run.run_id for run in await client.list_runs(limit=100)] == [str(number) for number in range(7)]
        assert [run.run_id for run in await client.list_runs(limit=5)] == ["0", "1", "2", "3", "4"]
        assert await client.list_runs(limit=0) == []


async def test_wait_run_outlives_its_server() -> None:
    done = httpx2.Response(200, json={**RUN, "status": "Failed"})
    server = Server(
        httpx2.Response(200, json=RUN), CONNECT, CONNECT, CONNECT, CONNECT, CONNECT, READ, problem(503), done
    )
    async with server.client() as client:
        assert (await client.wait_run("r")).status == "Failed"


async def test_wait_run_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Server(httpx2.Response(200, json=RUN)).client() as client:
        with pytest.raises(TimeoutError):
            await client.wait_run("r", timeout=0.05)
    monkeypatch.setattr(follow_module, "STRANGER", 0.05)
    async with Server(CONNECT).client() as client:
        with pytest.raises(UnreachableError):
            await client.wait_run("r")
    async with Server(problem(404)).client() as client:
        with pytest.raises(NotFoundError):
            await client.wait_run("r")


# -- following ---------------------------------------------------------------------------------------------------


def sse(*ids: int, end: bool = False, more: str = "") -> httpx2.Response:
    text = ": follows\n\n" + "".join(f'data: {{"runid":"r","message":"{it}"}}\nid: {it}\n\n' for it in ids)
    text += 'event: end\ndata: {"status":"Succeeded"}\n\n' if end else ""
    return httpx2.Response(200, text=text + more, headers={"content-type": "text/event-stream"})


async def test_following_goes_on_where_it_was() -> None:
    half = 'data: {"runid":"r","message":"5"}\nid: 5'
    server = Server(sse(1, 2), CONNECT, READ, problem(503), sse(2, 3, 4, more=half), sse(5, end=True))
    async with server.client() as client:
        lines = [(line.id, line.message) async for line in client.follow_logs("r")]
    assert lines == [(1, "1"), (2, "2"), (3, "3"), (4, "4"), (5, "5")]
    assert [request.headers["last-event-id"] for request in server.requests] == ["0", "2", "2", "2", "2", "4"]


async def test_following_begins_where_asked() -> None:
    server = Server(sse(8, end=True))
    async with server.client() as client:
        assert [line.id async for line in client.follow_logs("r", after=7, driver="builder")] == [8]
    assert server.requests[0].url.path == "/logs/streams/builder/r"
    assert server.requests[0].headers["last-event-id"] == "7"


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NotFoundError), (401, UnauthorizedError), (400, InvalidRequestError)]
)
async def test_following_what_cannot_be_followed(status: int, kind: type[ClientError]) -> None:
    server = Server(problem(status))
    async with server.client() as client:
        with pytest.raises(kind):
            await anext(client.follow_logs("r"))
    assert len(server.requests) == 1


async def test_a_stranger_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_module, "STRANGER", 0.05)
    async with Server(CONNECT).client() as client:
        with pytest.raises(UnreachableError):
            await anext(client.follow_logs("r", patience=1000))


# -- against the API ---------------------------------------------------------------------------------------------


async def test_models_know_what_the_api_answers() -> None:
    """Every member of the API's answers has its field in the client's models."""
    async with World() as world, Client("http://api", transport=httpx2.ASGITransport(app=world.app)) as client:
        await client.apply_definition({"name": "app"})
        await world.register("d", "app")
        steps = [{"driver": "d", "timeout": "5s"}]
        await client.apply_pipeline({"name": "p", "resource": "app", "steps": steps, "finally": [{"driver": "d"}]})
        applied = await client.apply({**DOCUMENT, "pipeline": "p"})
        await world.run_steps(applied.run_id)
        pairs = [
            (await client.get_run(applied.run_id), f"/runs/{applied.run_id}"),
            (await client.get_resource("app", "a"), "/resources/app/a"),
            (await client.get_pipeline("p"), "/pipelines/p"),
            (await client.get_definition("app"), "/resource-definitions/app"),
        ]
        for model, path in pairs:
            answered: dict[str, Any] = (await world.http.get(path)).json()
            known: dict[str, Any] = model.model_dump(mode="json", by_alias=True)
            assert set(answered) <= set(known), path
            for part in ("steps", "finally"):
                theirs: list[dict[str, Any]] = answered.pop(part, [])
                ours: list[dict[str, Any]] = known.pop(part, [])
                for step, known_step in zip(theirs, ours, strict=True):
                    assert {key: known_step[key] for key in step} == step
            assert {key: known[key] for key in answered} == answered, path


async def test_a_long_log_comes_page_by_page() -> None:
    server = Server(
        httpx2.Response(200, json=[{"message": "a", "id": 1}], headers={"Conveyor-Next": "1"}),
        httpx2.Response(200, json=[{"message": "b", "id": 2}], headers={"Conveyor-Next": "2"}),
        httpx2.Response(200, json=[{"message": "c", "id": 3}]),
    )
    async with server.client() as client:
        pages = [[line.message for line in page] async for page in client.log_pages("r")]
    assert pages == [["a"], ["b"], ["c"]]
    assert [request.url.params["after"] for request in server.requests] == ["0", "1", "2"]


async def test_who_has_read_enough_of_a_log_leaves_no_request_behind() -> None:
    more = httpx2.Response(200, json=[{"message": "a", "id": 1}], headers={"Conveyor-Next": "1"})
    async with Server(more).client() as client:
        async with contextlib.aclosing(client.log_pages("r")) as pages:
            await anext(pages)
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_log_that_is_none_is_said_so() -> None:
    async with Server(httpx2.Response(200, json={"no": "list"})).client() as client:
        with pytest.raises(ServerFaultError, match="not what this version understands"):
            await client.logs("r")
