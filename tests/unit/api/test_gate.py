"""What every route has in common: slashes, methods, errors, tokens, counting, and the description of it all."""

from __future__ import annotations

import logging

import pytest

from conveyor_runtime.bus import PayloadTooLarge
from conveyor_runtime.errors import BusUnavailable, RevisionConflict
from conveyor_runtime.telemetry import metrics
from tests.unit.api.world import World


async def test_no_redirects(world: World) -> None:
    for path in ("/resources", "/resource-definitions", "/pipelines", "/runs", "/drivers", "/logs", "/health"):
        for spelling in (path, path + "/"):
            assert (await world.http.get(spelling)).status_code == 200, spelling
    for path in ("/resources//", "/RESOURCES", "/resources/a/b/c/d", "/docs", "/redoc", "/.env"):
        assert (await world.http.get(path)).status_code in (400, 404), path


async def test_methods(world: World) -> None:
    await world.define()
    run = await world.create("a")
    answer = await world.http.patch("/resources/app/a", json={})
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD, PUT, DELETE, OPTIONS"
    assert answer.headers["content-type"] == "application/problem+json"
    for path, allow in {
        "/resources": "GET, HEAD, POST, OPTIONS",
        "/resources/apply": "GET, HEAD, POST, OPTIONS",
        f"/runs/{run}/cancel": "POST, OPTIONS",
        "/metrics/": "GET, HEAD, OPTIONS",
    }.items():
        answer = await world.http.options(path)
        assert (answer.status_code, answer.headers["allow"]) == (204, allow)
    assert (await world.http.options("/nope")).status_code == 404


async def test_head(world: World) -> None:
    await world.define()
    run = await world.create("a")
    for path in ("/", "/health", "/resources", "/resources/app/a", "/openapi.json", f"/logs/{run}"):
        answer = await world.http.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path
    assert (await world.http.head("/resources/app/none")).status_code == 404
    assert (await world.http.head(f"/logs/{run}")).headers["content-type"] == "text/event-stream"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BusUnavailable("not connected to the bus"), 503),
        (RevisionConflict("resource.app.a"), 503),
        (PayloadTooLarge("logs.r: 2000000 bytes"), 413),
        (RuntimeError("secret internals"), 500),
        (KeyError("x"), 500),
    ],
)
async def test_failures(world: World, monkeypatch, caplog, error, status) -> None:
    async def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(world.services.intake, "create", fail)
    with caplog.at_level(logging.WARNING):
        answer = await world.http.post("/resources", json={"name": "a"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    if status == 503:
        assert answer.headers["retry-after"] == "1"
    if status == 500:
        assert "secret internals" not in answer.text
        [record] = [it for it in caplog.records if it.exc_info]
        assert record.request_id == body["request_id"]
        assert body["request_id"] in body["detail"]


async def test_requests_are_counted_by_route(world: World) -> None:
    def count(**labels: str) -> float:
        return metrics.REGISTRY.get_sample_value("conveyor_http_requests_total", labels) or 0

    labels = {"method": "GET", "route": "/resources/{type}/{name}", "status": "404"}
    unknown = {"method": "GET", "route": "none", "status": "404"}
    odd = {"method": "other", "route": "none", "status": "404"}
    before = count(**labels), count(**unknown), count(**odd)
    for name in ("x", "y"):
        await world.get(f"/resources/app/{name}", 404)
    await world.get("/no/such/route/at/all", 404)
    await world.http.request("BREW", "/coffee")
    assert (count(**labels), count(**unknown), count(**odd)) == (before[0] + 2, before[1] + 1, before[2] + 1)
    text = (await world.http.get("/metrics")).text
    assert "conveyor_http_request_duration_seconds_bucket" in text
    assert "process_resident_memory_bytes" in text
    assert "/resources/app/x" not in text


# -- tokens ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def guarded():
    async with World(token="s3cret") as world:
        yield world


async def test_with_a_token(guarded: World) -> None:
    http = guarded.http
    for path in ("/", "/health", "/livez/", "/readyz"):
        assert (await http.get(path)).status_code == 200, path
    refused = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}, {"Authorization": "s3cret"}]
    for path in ("/resources", "/metrics", "/openapi.json", "/nope", "/logs/x", "/health/x"):
        for headers in refused:
            answer = await http.get(path, headers=headers)
            assert answer.status_code == 401, (path, headers)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["content-type"] == "application/problem+json"
    assert (await http.get("/resources?token=s3cret")).status_code == 401, "a URL is written into logs"
    assert (await http.get("/resources", headers={"Authorization": "bearer s3cret"})).status_code == 200
    assert (await http.get("/nope", headers={"Authorization": "Bearer s3cret"})).status_code == 404


async def test_a_refused_write_writes_nothing(guarded: World) -> None:
    answer = await guarded.http.post("/resource-definitions", json={"name": "x"})
    assert answer.status_code == 401
    assert guarded.store._values == {}


async def test_without_a_token_nothing_is_asked(world: World) -> None:
    assert (await world.http.get("/resources", headers={"Authorization": "Bearer anything"})).status_code == 200


# -- description -------------------------------------------------------------------------------------------------


async def test_openapi(world: World) -> None:
    answer = await world.http.get("/openapi.json")
    document = answer.json()
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    references = [part.split('"')[0] for part in answer.text.split('"#/components/schemas/')[1:]]
    assert set(references) <= set(schemas)
    assert '"#/$defs' not in answer.text
    assert "HTTPValidationError" not in schemas
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    assert len({operation["operationId"] for _, _, operation in operations}) == len(operations)
    for path, method, operation in operations:
        assert operation["responses"]["4XX"], (path, method)
        takes_body = method in ("post", "put") and not path.endswith(("/rerun", "/redrive"))
        assert ("requestBody" in operation) == takes_body, (path, method)
        named = {it["name"] for it in operation.get("parameters", ()) if it["in"] == "path"}
        assert named == {part.strip("{}") for part in path.split("/") if part.startswith("{")}, path
