"""A full disk under the store: new work is refused in clear words, nothing breaks, all goes on once there is room."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.disk import fill, small_disk
from tests.support.processes import Runtime

pytestmark = pytest.mark.timeout(150)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    with small_disk(tmp_path / "small", "64m") as folder:
        yield folder


class Api:
    """Statuses and documents."""

    def __init__(self, session: httpx2.AsyncClient) -> None:
        self._session = session

    async def post(self, name: str, size: int = 10) -> tuple[int, Any]:
        return await self.ask("POST", "/resources", {"name": name, "resource": "thing", "spec": {"x": "y" * size}})

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        answer = await self._session.request(method, path, json=body)
        return answer.status_code, answer.json()

    async def until(self, status: int, name: str) -> Any:
        """Post until the answer has this status; its document."""
        async with asyncio.timeout(40):
            number = 0
            while (answer := await self.post(f"{name}-{number}"))[0] != status:
                number += 1
                await asyncio.sleep(0.3)
        return answer[1]


@pytest.mark.parametrize("leave", [8 << 20, 0], ids=["nearly", "wholly"])
async def test_it_is_refused_and_goes_on_once_there_is_room(small: Path, leave: int) -> None:
    runtime = Runtime(small)
    try:
        await runtime.start()
        async with httpx2.AsyncClient(base_url=runtime.api_url, timeout=20) as session:
            api = Api(session)
            definition = {"name": "thing", "schema": {"type": "object"}}
            assert (await api.ask("POST", "/resource-definitions", definition))[0] == 201
            stored = [f"before-{number}" for number in range(20)]
            assert [(await api.post(name, 20_000))[0] for name in stored] == [201] * 20
            ballast = fill(small, leave)
            if not leave:
                # The server meets the end of the disk itself before anybody has looked.
                assert (await api.post("at-the-end", 200_000))[0] in (503, 507)
            assert "the disk of the store is full" in (await api.until(507, "full"))["detail"]
            assert (await api.ask("GET", "/resources/thing/before-0"))[0] == 200, "reading goes on"
            ballast.unlink()
            await api.until(201, "after")
            for name in stored:
                status, found = await api.ask("GET", f"/resources/thing/{name}")
                assert status == 200 and len(found["spec"]["x"]) == 20_000
        said = runtime.serve.log.read_text()
        assert said.count("new work is refused until there is room") == 1 and "Traceback" not in said, said
    finally:
        runtime.stop()
