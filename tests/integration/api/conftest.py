"""A real control plane on a real bus behind a real HTTP server, that can be stopped and started on one port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest

from conveyor_runtime.bus import Bus, subjects
from conveyor_runtime.client import Client
from conveyor_runtime.config import ApiSettings
from conveyor_runtime.daemon.connect import state_on
from conveyor_runtime.daemon.control import Control, control_plane
from conveyor_runtime.engine import planner
from conveyor_runtime.models import DriverRecord, LogLine, RunRecord, Status, StepResult, utc_now
from conveyor_runtime.store import Put, keys


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Serving:
    """The control plane at `url`, with hands that do what drivers do."""

    def __init__(self, bus: Bus, **settings: Any) -> None:
        self.bus = bus
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.control: Control
        self._settings = ApiSettings(port=self.port, **settings)
        self._stack = AsyncExitStack()
        self._numbers: dict[str, int] = {}

    async def start(self) -> None:
        state = await self._stack.enter_async_context(state_on(self.bus))
        self.control = await self._stack.enter_async_context(control_plane(self.bus, state, self._settings))

    async def stop(self) -> None:
        await self._stack.aclose()

    async def begin(self, name: str = "a") -> str:
        """A run that waits for its one step; its id."""
        await self.control.state.commit(Put(keys.driver("d"), DriverRecord(name="d", types=("app",))))
        async with Client(self.url, self._settings.token) as client:
            await client.apply_definition({"name": "app"})
            return (await client.create({"name": name, "resource": "app", "spec": {}})).run_id

    async def line(self, run_id: str, message: str, driver: str = "d") -> int:
        """Store a line as our logger does."""
        number = self._numbers[run_id] = self._numbers.get(run_id, 0) + 1
        line = LogLine(runid=run_id, driver=driver, message=message, step=driver, attempt=1, seq=number)
        receipt = await self.bus.publish(subjects.log(run_id), line.encode(), msg_id=f"{run_id}.{number}")
        return receipt.seq

    async def end(self, run_id: str, status: Status = Status.SUCCEEDED) -> None:
        """Answer the run's step, once it is handed out: an answer to what nobody was asked would change nothing."""
        result = StepResult(run_id=run_id, step="d", attempt=1, takeover=0, status=status, instance="i")

        def is_awaited() -> bool:
            found = self.control.state.view.run(run_id)
            return found is not None and found.record.awaits(result)

        def change(run: RunRecord) -> RunRecord:
            return planner.apply_result(run, result, utc_now()) or run

        await until(is_awaited)
        await self.control.services.engine.transitions.change(run_id, change)
        self.control.services.engine.look(run_id)

    async def settled(self, type_: str, name: str) -> None:
        """Until the resource owes no run."""

        def owes() -> bool:
            found = self.control.state.view.resource(type_, name)
            return found is not None and found.record.active is not None

        await until(lambda: not owes())


@pytest.fixture
async def serving(bus: Bus) -> AsyncIterator[Serving]:
    serving = Serving(bus)
    await serving.start()
    yield serving
    await serving.stop()


@pytest.fixture
async def client(serving: Serving) -> AsyncIterator[Client]:
    async with Client(serving.url) as client:
        yield client


@pytest.fixture
async def http(serving: Serving) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=serving.url, timeout=30, trust_env=False) as http:
        yield http


async def until(condition: Any) -> None:
    """Wait until `condition()` holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)
