"""A whole control plane in memory: the real engine, intake and API over the memory store; the bus is pretended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import orjson

from conveyor_runtime.api import Services, create_app
from conveyor_runtime.bus import Bus, Committer, Message, Puller, Receipt
from conveyor_runtime.engine import Engine, Intake, planner
from conveyor_runtime.models import Claim, DriverRecord, Instance, LogLine, RunRecord, Status, StepResult, utc_now
from conveyor_runtime.store import LogStore, MemoryStore, Put, State, View, keys
from conveyor_runtime.store.logs import LogEntry


class FakeLogs:
    """Lines in memory, read and followed as from the stream."""

    def __init__(self) -> None:
        self.entries: list[LogEntry] = []
        self.more = asyncio.Condition()

    async def add(self, line: LogLine) -> int:
        async with self.more:
            seq = len(self.entries) + 1
            self.entries.append(LogEntry(seq, line))
            self.more.notify_all()
            return seq

    async def last_seq(self, run_id: str | None = None) -> int:
        return max((it.seq for it in self.entries if run_id in (None, it.line.runid)), default=0)

    async def read(self, run_id: str | None = None, *, after: int = 0) -> AsyncIterator[LogEntry]:
        for entry in list(self.entries):
            if entry.seq > after and run_id in (None, entry.line.runid):
                yield entry

    async def follow(self, run_id: str, ended: Awaitable[None], *, after: int = 0) -> AsyncIterator[LogEntry]:
        over = asyncio.ensure_future(ended)
        over.add_done_callback(lambda _: asyncio.ensure_future(self._wake()))
        while True:
            for entry in list(self.entries):
                if entry.seq > after and entry.line.runid == run_id:
                    after = entry.seq
                    yield entry
            async with self.more:
                if await self.last_seq(run_id) <= after:
                    if over.done():
                        return
                    await self.more.wait()

    async def _wake(self) -> None:
        async with self.more:
            self.more.notify_all()


class FakeBus:
    """Connected, and remembers what was sent."""

    def __init__(self, logs: FakeLogs) -> None:
        self._logs = logs
        self.connected = True
        self.connected_since: float | None = 0.0
        self.max_payload = 1 << 20
        self.sent: list[tuple[str, bytes]] = []

    def publish_core(self, subject: str, data: bytes) -> None:
        self.sent.append((subject, data))

    async def publish(self, subject: str, data: bytes, **_: Any) -> Receipt:
        if subject.startswith("logs."):
            return Receipt(await self._logs.add(LogLine.model_validate_json(data)), False)
        self.sent.append((subject, data))
        return Receipt(len(self.sent), False)


class FakeCommitter:
    """Takes every dispatch."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def commit(self, unit: Sequence[Message], *, timeout: float = 10.0) -> list[Receipt]:
        self.messages += unit
        return [Receipt(len(self.messages), False) for _ in unit]


class World:
    """Services, a client for them, and hands to move things on."""

    def __init__(self, token: str = "") -> None:
        store = MemoryStore()
        self.store = store
        self.state = State(store, View(store))
        self.logs = FakeLogs()
        self.bus = FakeBus(self.logs)
        self.dispatches = FakeCommitter()
        nothing = cast(Puller, SimpleNamespace(stop=_nothing))
        self.engine = Engine(self.state, cast(Bus, self.bus), cast(Committer, self.dispatches), nothing)
        self.parts = {"bus": "ok", "view": "ok"}
        self.services = Services(
            state=self.state,
            engine=self.engine,
            intake=Intake(self.engine),
            logs=cast(LogStore, self.logs),
            bus=cast(Bus, self.bus),
            ready=lambda: (set(self.parts.values()) == {"ok"}, self.parts),
        )
        self.app = create_app(self.services, token=token)
        transport = httpx2.ASGITransport(app=self.app)
        self.http = httpx2.AsyncClient(transport=transport, base_url="http://api")

    async def __aenter__(self) -> World:
        await self.state.view.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()
        await self.engine.close()
        await self.state.view.stop()

    async def settle(self) -> None:
        """Until the engine has nothing to do."""
        while self.engine._runs._running or self.engine._resources._running:
            await asyncio.sleep(0)

    async def define(self, name: str = "app", **fields: Any) -> None:
        answer = await self.http.post("/resource-definitions/apply", json={"name": name, **fields})
        assert answer.status_code == 201, answer.text

    async def register(self, name: str, *types: str, events: tuple[str, ...] = ("create", "update")) -> None:
        record = DriverRecord(name=name, types=types, events=events)
        await self.state.commit(Put(keys.driver(name), record))
        await self.settle()

    async def post(self, path: str, document: Any, status: int = 201) -> Any:
        answer = await self.http.post(path, json=document)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def get(self, path: str, status: int = 200) -> Any:
        answer = await self.http.get(path)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def create(self, name: str = "a", type_: str = "app", **fields: Any) -> str:
        """Create a resource; its run id."""
        document = {"name": name, "resource": type_, "spec": {}, **fields}
        return cast(str, (await self.post("/resources", document))["runid"])

    async def claim(self, run_id: str, step: str) -> None:
        """Have a living worker work on a step's first attempt."""
        await self.settle()
        now = utc_now()
        instance = Instance(id="worker", driver=step, started_at=now, renewed_at=now)
        await self.state.commit(Put(keys.instance("worker"), instance))
        await self.state.commit(Put(keys.claim(run_id, step, 1, 0), Claim(instance="worker", at=now)))

    async def run_steps(
        self, run_id: str, status: Status = Status.SUCCEEDED, data: Any = None, message: str = "ok"
    ) -> RunRecord:
        """Have every step of a run answered, as its drivers would, until the run has ended."""
        await self.settle()
        while True:
            found = await self.state.run(run_id)
            assert found is not None
            opened = list(found.record.open_steps())
            if not opened:
                await self.settle()
                return found.record
            for step, state in opened:
                result = StepResult(
                    run_id=run_id,
                    step=step.id,
                    attempt=state.attempt,
                    takeover=state.takeover,
                    driver=step.driver,
                    status=status,
                    message=message,
                    data={"driver": step.driver, "n": 1} if data is None else data,
                    instance="i",
                    started_at=utc_now(),
                    finished_at=utc_now(),
                )
                await self.engine.transitions.change(run_id, _taking(result))
            self.engine.look(run_id)
            await self.settle()

    async def line(self, run_id: str, message: str, driver: str = "builder") -> int:
        """Store a line of a run's log."""
        return await self.logs.add(LogLine(runid=run_id, driver=driver, message=message, timestamp="1"))


def _taking(result: StepResult) -> Callable[[RunRecord], RunRecord]:
    return lambda run: planner.apply_result(run, result, utc_now()) or run


async def _nothing() -> None:
    return None


def events_of(text: str) -> list[tuple[str, str, Any]]:
    """The server-sent events in `text`: (event, id, data)."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            found.append((fields.get("event", ""), fields.get("id", ""), orjson.loads(fields["data"])))
    return found
