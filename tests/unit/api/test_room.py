"""What is refused while the disk of the store is full: all that adds, and nothing that reads or ends."""

from __future__ import annotations

import re
from dataclasses import replace

import httpx2
import orjson

from conveyor_runtime.api import create_app
from tests.unit.api.world import World


async def test_what_a_full_disk_refuses(world: World) -> None:
    """Every route there is, so that one which is added is thought of."""
    app = create_app(replace(world.services, disk_is_full=lambda: True), token="")
    refused: set[tuple[str, str]] = set()
    let_through: set[tuple[str, str]] = set()
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://api") as http:
        for path, methods in (await http.get("/openapi.json")).json()["paths"].items():
            for method in map(str.upper, methods):
                if path.startswith("/logs") and method == "GET":
                    continue  # answers until a run has ended
                answer = await http.request(method, re.sub(r"\{\w+\}", "x", path), json={})
                (refused if answer.status_code == 507 else let_through).add((method, path))
                if answer.status_code == 507:
                    assert answer.headers["retry-after"] == "10"
                    assert "nothing was stored" in orjson.loads(answer.content)["detail"]
    assert {method for method, _ in refused} == {"POST", "PUT"}
    assert ("PUT", "/resources/{type}/{name}") in refused
    assert {(method, path) for method, path in let_through if method in ("POST", "PUT", "PATCH")} == {
        ("POST", "/runs/{run_id}/cancel")
    }
    assert ("DELETE", "/resources/{type}/{name}") in let_through
    assert world.store._values == {}
