"""What no client should send: each a clear 4xx that says where and why, nothing stored, nothing crashed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from tests.unit.api.world import World

SCHEMA = {
    "type": "object",
    "properties": {"repository": {"type": "string"}, "kind": {"enum": ["apk", "ios"]}},
    "required": ["repository"],
}
GOOD = {"name": "a", "resource": "app", "spec": {"repository": "r"}}
STEPS = [{"name": "one", "driver": "d"}]
PIPELINE = {"name": "p", "resource": "app", "steps": STEPS}


@pytest.fixture(autouse=True)
async def _defined(world: World) -> None:
    await world.define(schema=SCHEMA)


@pytest.fixture
def stored(world: World):
    """The keys of the store, before the request."""
    before = set(world.store._values)
    yield
    assert set(world.store._values) == before


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(
    ("document", "status", "pointer"),
    [
        ({**GOOD, "name": ""}, 400, "/name"),
        ({**GOOD, "name": "a.b"}, 400, "/name"),
        ({**GOOD, "name": "a*"}, 400, "/name"),
        ({**GOOD, "name": ">"}, 400, "/name"),
        ({**GOOD, "name": "a b"}, 400, "/name"),
        ({**GOOD, "name": "a/b"}, 400, "/name"),
        ({**GOOD, "name": "a\n"}, 400, "/name"),
        ({**GOOD, "name": "x" * 129}, 400, "/name"),
        ({**GOOD, "name": "ä"}, 400, "/name"),
        ({**GOOD, "name": 5}, 400, "/name"),
        ({**GOOD, "name": None}, 400, "/name"),
        ({**GOOD, "name": ["a"]}, 400, "/name"),
        ({"resource": "app", "spec": {}}, 400, "/name"),
        ({**GOOD, "resource": "a.b"}, 400, "/resource"),
        ({**GOOD, "resource": "nothing"}, 422, None),
        ({**GOOD, "pipeline": "nothing"}, 422, None),
        ({**GOOD, "pipeline": "a.b"}, 400, "/pipeline"),
        ({**GOOD, "pipeline": {"a": 1}}, 400, "/pipeline"),
        ({**GOOD, "spec": {}}, 400, "/spec"),
        ({**GOOD, "spec": {"repository": 3}}, 400, "/spec/repository"),
        ({**GOOD, "spec": {"repository": "r", "kind": "exe"}}, 400, "/spec/kind"),
        ({**GOOD, "spec": [1]}, 400, "/spec"),
        ({**GOOD, "spec": None}, 400, "/spec"),
        ({"name": "a", "resource": "app"}, 400, "/spec"),
        ({**GOOD, "spec": {"repository": "x" * 300_000}}, 413, None),
        ({**GOOD, "spec": {"repository": "a\0b"}}, 400, "/spec/repository"),
        ({**GOOD, "spec": {"repository": "r", "a/b": {"~": ["\0"]}}}, 400, "/spec/a~1b/~0/0"),
        ({**GOOD, "spec": {"repository": "r", "a\0": 1}}, 400, "/spec"),
        ({**GOOD, "metadata": {"a": 1}}, 400, "/metadata/a"),
        ({**GOOD, "metadata": ["a"]}, 400, "/metadata"),
        ({**GOOD, "resource": "pipeline", "spec": {"resource": "nothing", "steps": STEPS}}, 422, None),
        ({**GOOD, "specc": {}}, 400, "/specc"),
        ({**GOOD, "resource": "pipeline", "spec": {"resource": "app", "stepps": STEPS}}, 400, "/spec/stepps"),
    ],
)
async def test_resource(world: World, document, status, pointer) -> None:
    answer = await world.http.post("/resources", json=document)
    check(answer, status, pointer)
    answer = await world.http.post("/resources/apply", json=document)
    check(answer, status, pointer)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(
    ("body", "content_type", "pointer"),
    [
        (b"", "application/json", None),
        (b"{", "application/json", None),
        (b'{"name": }', "application/json", None),
        (b"[]", "application/json", ""),
        (b"null", "application/json", ""),
        (b'"text"', "application/json", ""),
        (b'{"a": NaN}', "application/json", None),
        (b'{"name": "\xff\xfe"}', "application/json", None),
        (b'{"name": "a\x00b"}', "application/json", None),
        (b'{"name": "\\ud800"}', "application/json", None),
        (b'{"spec": ' + b"[" * 100 + b"]" * 100 + b"}", "application/json", "/spec" + "/0" * 63),
        (b'{"spec": ' + b"[" * 5000 + b"]" * 5000 + b"}", "application/json", None),
        (orjson.dumps(GOOD), "text/plain", None),
        (orjson.dumps(GOOD), "", None),
        (b"name=a&resource=app", "application/x-www-form-urlencoded", None),
    ],
)
@pytest.mark.parametrize("path", ["/resources", "/resources/apply", "/pipelines", "/resource-definitions", "/logs"])
async def test_body(world: World, path, body, content_type, pointer) -> None:
    answer = await world.http.post(path, content=body, headers={"content-type": content_type} if content_type else {})
    check(answer, 400, pointer)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("depth", [63, 200, 2000])
async def test_nesting(world: World, depth: int) -> None:
    """Refused at a depth of our own, before any encoder further down meets its own."""
    body = b'{"name": "a", "resource": "nothing", "spec": {"x": ' + b"[" * depth + b"]" * depth + b"}}"
    answer = await world.http.post("/resources", content=body, headers={"content-type": "application/json"})
    check(answer, 400, "/spec/x" + "/0" * 62 if depth < 1000 else None)


async def test_content_type_with_parameters_is_taken(world: World) -> None:
    for media_type in ("application/json; charset=utf-8", "Application/JSON", "application/merge-patch+json"):
        body = orjson.dumps(GOOD)
        answer = await world.http.post("/resources/apply", content=body, headers={"content-type": media_type})
        assert answer.status_code in (200, 201), media_type


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(
    ("document", "status", "pointer"),
    [
        ({**PIPELINE, "name": "a.b"}, 400, "/name"),
        ({**PIPELINE, "name": 1}, 400, "/name"),
        ({"name": "p", "steps": STEPS}, 400, "/resource"),
        ({**PIPELINE, "resource": "nothing"}, 422, None),
        ({**PIPELINE, "steps": {"a": 1}}, 400, "/steps"),
        ({**PIPELINE, "steps": ["a"]}, 400, "/steps/0"),
        ({**PIPELINE, "steps": [{"name": "x"}]}, 400, "/steps/0/driver"),
        ({**PIPELINE, "steps": [{"driver": "a.b"}]}, 400, "/steps/0/driver"),
        ({**PIPELINE, "steps": [{"id": "a b", "driver": "d"}]}, 400, "/steps/0/id"),
        ({**PIPELINE, "steps": [{"id": "x", "driver": "d"}, {"id": "x", "driver": "d"}]}, 400, ""),
        ({**PIPELINE, "steps": [{"driver": "d", "timeout": "soon"}]}, 400, "/steps/0/timeout"),
        ({**PIPELINE, "steps": [{"driver": "d", "timeout": -1}]}, 400, "/steps/0/timeout"),
        ({**PIPELINE, "steps": STEPS * 101}, 400, "/steps"),
        ({**PIPELINE, "finally": [{}]}, 400, "/finally/0/driver"),
        ({**PIPELINE, "stepps": STEPS}, 400, "/stepps"),
        ({**PIPELINE, "steps": [{"driver": "d", "timout": 1}]}, 400, "/steps/0/timout"),
    ],
)
async def test_pipeline(world: World, document, status, pointer) -> None:
    check(await world.http.post("/pipelines", json=document), status, pointer)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(
    ("document", "status", "pointer"),
    [
        ({"schema": {}}, 400, "/name"),
        ({"name": "a.b"}, 400, "/name"),
        ({"name": {}}, 400, "/name"),
        ({"name": "x", "schema": {"type": "nope"}}, 400, "/schema/type"),
        ({"name": "x", "schema": "text"}, 400, "/schema"),
        ({"name": "x", "schema": {"$ref": "http://127.0.0.1:1/secret"}}, 400, "/schema"),
        ({"name": "x", "schema": {"$ref": "file:///etc/passwd"}}, 400, "/schema"),
        ({"name": "x", "queue": "random"}, 400, "/queue"),
        ({"name": "x", "shcema": {}}, 400, "/shcema"),
        ({"name": "pipeline", "schema": {}}, 409, None),
    ],
)
async def test_definition(world: World, document, status, pointer) -> None:
    check(await world.http.post("/resource-definitions/apply", json=document), status, pointer)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(
    ("method", "path", "pointer"),
    [
        ("GET", "/resources/a.b/x", "/path/type"),
        ("GET", "/resources/app/x%20y", "/path/name"),
        ("GET", "/resources/app/%00", "/path/name"),
        ("GET", "/resources/app/%ff", "/path/name"),
        ("DELETE", "/resources/app/*", "/path/name"),
        ("GET", "/resources/app/..%2F..%2Fx", None),
        ("GET", "/resource-definitions/a.b", "/path/name"),
        ("DELETE", "/pipelines/%3E", "/path/name"),
        ("GET", "/resources?limit=0", "/query/limit"),
        ("GET", "/resources?limit=501", "/query/limit"),
        ("GET", "/resources?limit=many", "/query/limit"),
        ("GET", "/resources?type=a.b", "/query/type"),
        ("GET", "/resources?cursor=x", "/query/cursor"),
        ("GET", "/resources?revision=-1", "/query/revision"),
        ("GET", "/runs?status=Happy", "/query/status/0"),
        ("GET", "/logs?limit=99999999", "/query/limit"),
        ("GET", "/logs?after=x", "/query/after"),
    ],
)
async def test_address(world: World, method, path, pointer) -> None:
    check(await world.http.request(method, path), 400, pointer)


async def test_too_large(world: World) -> None:
    """Refused by its announced size, or while reading if none is announced; and never read to the end of the world."""
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while taken < 50 << 20:
            taken += 1 << 16
            yield b"x" * (1 << 16)

    json = {"content-type": "application/json"}
    check(await world.http.post("/resources", content=endless(), headers=json), 413, None)
    assert taken < 20 << 20
    taken = 0
    check(
        await world.http.post("/logs", content=endless(), headers={**json, "content-length": str(10 << 20)}), 413, None
    )
    assert taken < 20 << 20


@pytest.mark.parametrize(
    ("document", "where", "hint"),
    [
        ({"name": "a", "resource": "app", "specc": {}}, "/specc", "did you mean spec?"),
        ({**PIPELINE, "steps": [{"drvier": "d"}]}, "/steps/0/drvier", "did you mean driver?"),
        ({"name": "b", "schema": {}, "qq": 1}, "/qq", "there are id, name, description, version, schema"),
        ({**GOOD, "resource": "closed", "spec": {"repositry": "r"}}, "/spec/repositry", "did you mean repository?"),
        ({**GOOD, "resource": "closed", "spec": {"in": {"b": 1}}}, "/spec/in/b", "there are a"),
    ],
)
async def test_a_field_that_does_not_exist(world: World, document: Any, where: str, hint: str) -> None:
    inner = {"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False}
    properties = {"repository": {}, "in": {"$ref": "#/$defs/in"}}
    closed = {"type": "object", "properties": properties, "additionalProperties": False, "$defs": {"in": inner}}
    await world.define("closed", schema=closed)
    path = "pipelines" if "steps" in document else "resource-definitions" if "schema" in document else "resources"
    answer = await world.http.post(f"/{path}", json=document)
    assert answer.status_code == 400
    assert f"{where}: there is no such field; {hint}" in answer.json()["detail"]


async def test_what_was_shown_can_be_sent_back(world: World) -> None:
    await world.create("a", spec={"repository": "r"})
    await world.post("/pipelines", {**PIPELINE, "finally": STEPS})
    shown = await world.get("/resources/app/a")
    assert (await world.post("/resources/apply", {**shown, "runid": ""}, 200))["changed"] is False
    await world.post("/pipelines", await world.get("/pipelines/p"))
    await world.post("/resource-definitions/apply", await world.get("/resource-definitions/app"))


async def test_a_body_that_contradicts_its_path(world: World) -> None:
    await world.create("a", spec={"repository": "r"})
    check(await world.http.put("/resources/app/a", json={**GOOD, "name": "b"}), 400, "/name")
    check(await world.http.put("/resources/app/a", json={**GOOD, "resource": "other"}), 400, "/resource")
    check(await world.http.put("/pipelines/p", json={**PIPELINE, "name": "q"}), 400, "/name")
    check(await world.http.put("/resource-definitions/app", json={"name": "b"}), 400, "/name")


def check(answer, status: int, pointer: str | None) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["error"] == body["detail"]
    assert body["title"]
    assert "Traceback" not in answer.text
    pointers = [item["pointer"] for item in body["errors"]]
    assert pointers == [] if pointer is None else pointer in pointers, body
