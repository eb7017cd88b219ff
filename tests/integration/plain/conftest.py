"""A Go engine's bus, and driver processes of ours on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from conveyor_runtime.bus import Bus
from conveyor_runtime.config import DriverSettings
from conveyor_runtime.daemon.worker import connected_manager
from conveyor_runtime.reconcile import Driver, DriverManager
from tests.conftest import StartServer
from tests.support.go_engine import GoEngine

Add = Callable[..., Awaitable[DriverManager]]


@pytest.fixture
async def url(start_server: StartServer) -> str:
    return (await start_server()).url


@pytest.fixture
async def engine(url: str) -> AsyncIterator[GoEngine]:
    """All of its streams."""
    engine = await GoEngine.start(await Bus.connect(url, name="go-engine"))
    yield engine
    await engine.stop()


@pytest.fixture
async def add(url: str) -> AsyncIterator[Add]:
    """Start a driver as its process does, all but the signals."""
    running: list[tuple[DriverManager, asyncio.Task[None]]] = []
    async with AsyncExitStack() as stack:

        async def start(driver: Driver, **settings: Any) -> DriverManager:
            chosen = DriverSettings(**{"drain_grace": 5.0, "kill_grace": 0.5, **settings})
            manager = await stack.enter_async_context(connected_manager(driver, url, chosen))
            task = asyncio.create_task(manager.run())
            running.append((manager, task))
            ready = asyncio.create_task(manager.ready.wait())
            await asyncio.wait({ready, task}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                ready.cancel()
                running.pop()
                await task
            return manager

        yield start
        for manager, _ in running:
            manager.drain()
        await asyncio.gather(*(task for _, task in running))
