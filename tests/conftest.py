"""A real nats-server for every test that wants one: one per session (and xdist worker), or a private one.

nats_server   the session's server; `.url` connects to it
bus           a fresh connection to it, on a bus with our streams and nothing in them
start_server  `await start_server(...)` gives a private server, to be killed and restarted at will
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conveyor_runtime.bus import Bus, EmbeddedServer
from tests.support.order import dealt
from tests.support.required import UnknownPartError, absent
from tests.support.streams import fresh_streams

StartServer = Callable[..., Awaitable[EmbeddedServer]]


def pytest_configure(config: pytest.Config) -> None:
    """End a run at once whose machine lacks what CONVEYOR_REQUIRE names."""
    if hasattr(config, "workerinput"):
        return  # the process that started this one has looked
    try:
        lacking = absent()
    except UnknownPartError as error:
        raise pytest.UsageError(str(error)) from None
    if lacking:
        raise pytest.UsageError(f"CONVEYOR_REQUIRE names what is missing here: {', '.join(lacking)}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have several workers end together; one alone keeps the order of the files."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        items[:] = [items[number] for number in dealt([item.nodeid.partition("::")[0] for item in items], workers)]


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One server for the session. It lives in a loop of its own: those of the tests come and go."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="nats-server", daemon=True)
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    server = EmbeddedServer(tmp_path_factory.mktemp("nats"), sync="2m")
    run(server.start())
    yield server
    run(server.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
async def bus(nats_server: EmbeddedServer) -> AsyncIterator[Bus]:
    """A connection to a bus that has our streams, empty, and no others."""
    bus = await Bus.connect(nats_server.url, name="test")
    await fresh_streams(bus)
    yield bus
    await bus.close()


@pytest.fixture
async def start_server(tmp_path: Path) -> AsyncIterator[StartServer]:
    """Start private servers; each is stopped after the test. `data_dir` defaults to one of the test's own."""
    servers: list[EmbeddedServer] = []

    async def start(*, data_dir: Path | None = None, sync: str = "2m", **options: Any) -> EmbeddedServer:
        server = EmbeddedServer(data_dir or tmp_path / f"nats{len(servers)}", sync=sync, **options)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.stop()
