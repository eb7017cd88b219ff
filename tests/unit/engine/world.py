"""The parts of an engine that look at others, over a store in memory and a clock the test moves."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from conveyor_runtime.engine.liveness import Liveness
from conveyor_runtime.engine.nodes import Nodes
from conveyor_runtime.engine.ownership import Ownership
from conveyor_runtime.engine.plans import Fleet
from conveyor_runtime.engine.transitions import Transitions
from conveyor_runtime.models import Instance, PlannedStep, RunRecord, StepState
from conveyor_runtime.store import MemoryStore, Put, State, View, keys

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Watcher:
    """Liveness, nodes and ownership of one engine."""

    def __init__(self, fleet: Fleet | None = None) -> None:
        self.time = 1000.0
        self.bus = SimpleNamespace(connected=True, connected_since=1000.0)
        self.view = View(MemoryStore())
        self.state = State(self.view._store, self.view)
        self.issued: list[str] = []
        self.letters: list[str] = []
        self.looks: list[float] = []
        self.results = {"taken_in": 0, "last": 0}
        dispatcher = SimpleNamespace(publish=self._publish, keep_letter=self._keep_letter)
        self.transitions = Transitions(self.state, cast(Any, dispatcher), lambda: fleet or Fleet(), lambda: NOW)
        self.liveness = Liveness(self.state, cast(Any, self.bus), lambda: self.time)
        self.nodes = Nodes(self.view, self.liveness, lambda: self.time)
        self.ownership = Ownership(self.transitions, cast(Any, self.bus), self.liveness, self.nodes)
        self.view.listen(lambda kind, parts: self.liveness.noticed(parts[0]) if kind == "instance" else None)

    async def stream_info(self, bus: Any, stream: str) -> dict[str, Any]:
        return {"state": {"last_seq": self.results["last"]}}

    async def consumer_info(self, bus: Any, stream: str, name: str) -> dict[str, Any]:
        return {"ack_floor": {"stream_seq": self.results["taken_in"]}}

    async def _publish(self, run: RunRecord, step: PlannedStep, state: StepState) -> None:
        self.issued.append(f"{step.id}.{state.attempt}.{state.takeover}.{state.issue}")

    async def _keep_letter(self, run: RunRecord, step: Any, state: Any, reason: str) -> None:
        self.letters.append(reason)

    async def put(self, key: str, record: Any) -> None:
        await self.state.commit(Put(key, record))

    async def instance(self, id_: str = "i", **fields: Any) -> None:
        record = Instance(id=id_, driver="d", started_at=NOW, renewed_at=NOW, boot_id="elsewhere", **fields)
        await self.put(keys.instance(id_), record)

    async def pass_time(self, seconds: float, step: float = 1.0) -> None:
        """Time passes while the engine looks around as it should."""
        until = self.time + seconds
        while self.time < until:
            self.time = min(self.time + step, until)
            await self.liveness.look()
