"""Work for the no-op driver: its messages, and runs as the engine leaves them."""

from __future__ import annotations

import asyncio
import time

import orjson
import uuid_utils

from conveyor_runtime.bus import Bus, Committer, Message, subjects
from conveyor_runtime.bus.streams import MESSAGES, STATE
from conveyor_runtime.engine.dispatcher import Dispatcher
from conveyor_runtime.models import PlannedStep, Resource, RunRecord, Status, StepState, utc_now
from conveyor_runtime.reconcile.registration import Registration
from conveyor_runtime.store import KvStore, Put, State, View, keys
from tests.benchmarks.noop import NAME, TYPE, driver

SIZE = 600
"""Bytes of a message."""

_CHUNK = 500


def message(number: int, size: int = SIZE, run_id: str = "") -> bytes:
    """A driver message on the wire, of `size` bytes."""
    run_id = run_id or str(uuid_utils.uuid7())
    resource = {"id": run_id, "name": f"r{number}", "resource": TYPE, "metadata": {"version": "1"}, "spec": {"pad": ""}}
    body = {"event": "create", "payload": orjson.dumps(resource).decode(), "id": f"{number:024d}", "run_id": run_id}
    resource["spec"] = {"pad": "x" * (size - len(orjson.dumps(body)))}
    return orjson.dumps({**body, "payload": orjson.dumps(resource).decode()})


class Backlog:
    """Work for the driver, put where the engine would put it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._messages, self._states = Committer(bus, MESSAGES), Committer(bus, STATE)
        self._state = State(KvStore(bus, self._states), View(KvStore(bus, self._states)))
        self._dispatcher = Dispatcher(self._state, bus, self._messages)

    async def prepare(self) -> None:
        """The driver's consumer, as its process makes it: without one, nobody keeps its messages."""
        for make in Registration(driver, self._bus, self._state, ()).consumers().values():
            await make()

    async def plain(self, count: int) -> None:
        """Messages without an attempt: the plain contract."""
        subject = subjects.step_dispatch(NAME, TYPE)
        for start in range(0, count, _CHUNK):
            unit = [Message(subject, message(number)) for number in range(start, min(start + _CHUNK, count))]
            await self._messages.commit(unit, timeout=60)

    async def runs(self, count: int) -> None:
        """Runs of one step whose dispatch waits, of SIZE bytes each."""
        for start in range(0, count, _CHUNK):
            runs = [_run(number) for number in range(start, min(start + _CHUNK, count))]
            await self._state.commit(*(Put(keys.run(run.run_id), run, 0) for run in runs), timeout=60)
            await asyncio.gather(*map(self._dispatch, runs))

    async def one_plain(self, number: int) -> tuple[str, float]:
        """One message more; its run's id, and the monotonic clock when it was given to be stored."""
        run_id = f"r{number}"
        data = message(number, run_id=run_id)
        began = time.monotonic()
        await self._messages.commit([Message(subjects.step_dispatch(NAME, TYPE), data)], timeout=60)
        return run_id, began

    async def one_run(self, number: int) -> tuple[str, float]:
        """One run more; its id, and the monotonic clock when its dispatch was given to be stored, after its record."""
        run = _run(number)
        await self._state.commit(Put(keys.run(run.run_id), run, 0), timeout=60)
        began = time.monotonic()
        await self._dispatch(run)
        return run.run_id, began

    async def _dispatch(self, run: RunRecord) -> None:
        await self._dispatcher.publish(run, (run.plan or ())[0], run.steps["only"])

    async def close(self) -> None:
        await self._messages.close()
        await self._states.close()


def _run(number: int) -> RunRecord:
    run_id, now = str(uuid_utils.uuid7()), utc_now()
    # What the dispatcher adds to it makes the message as long as the plain ones.
    resource = Resource(id=run_id, name=f"r{number}", resource=TYPE, metadata={"version": "1"}, spec={"pad": "x" * 290})
    return RunRecord(
        run_id=run_id,
        type=TYPE,
        name=resource.name,
        event="create",
        generation=1,
        status=Status.PENDING,
        resource=resource,
        plan=(PlannedStep(id="only", driver=NAME),),
        steps={"only": StepState(attempt=1, issue=1, issued_at=now)},
        created_at=now,
    )
