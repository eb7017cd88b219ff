"""Engines and workers on one server, and everything that can happen to them; the model looks on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson

from conveyor_runtime.bus import Message, subjects
from conveyor_runtime.bus.streams import DLQ, MESSAGES, RESULTS
from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.models import DriverRecord, ResourceDefinition, ResourceRecord
from conveyor_runtime.models.message import H_ATTEMPT, H_RUN, H_STEP, H_TAKEOVER
from conveyor_runtime.reconcile.lease import LeaseLostError
from conveyor_runtime.store import Change, Write, keys
from tests.model.loop import Clock
from tests.model.model import Model
from tests.model.process import Op, Process
from tests.model.processes import TYPE, EngineProcess, Job, Request, WorkerProcess
from tests.model.server import Item, Server
from tests.model.stand_ins import StandIns
from tests.model.steps import Violation

#: Two workers of the first driver, which has the first and the last step, and one of the second.
DRIVERS = ("first", "first", "second")

PIPELINE = {
    "resource": TYPE,
    "steps": [{"id": "one", "name": "one", "driver": "first"}, {"id": "two", "name": "two", "driver": "second"}],
    "finally": [{"id": "clean", "name": "clean", "driver": "first"}],
}

#: How a driver process may end by itself.
_MAY_END = (LeaseLostError, BusUnavailable, asyncio.CancelledError)

#: How an engine asks for the next result.
_RESULTS = f"next {subjects.RESULT_CONSUMER}"

#: Seconds that nothing which can happen may be kept waiting for: longer silences are faults of their own.
PATIENCE = 4.0


class World:
    """`release` and `advance` are all that makes anything happen."""

    def __init__(self, make_server: Callable[[Clock], Server]) -> None:
        self.clock = Clock()
        self.server = make_server(self.clock)
        self.model = Model(self.clock.monotonic)
        self.engines: list[EngineProcess | None] = [None, None]
        self.workers: list[WorkerProcess | None] = [None] * len(DRIVERS)
        self.requests: list[Request] = []
        self.faults: list[str] = []
        self.results_wait = False
        self._stand_ins = StandIns(self.clock, self.faults)
        self.server.on_write = self._wrote
        self.server.on_publish = self._published
        self.server.on_ack = self._acked
        self._furnish()
        for number in range(len(self.engines)):
            self.start_engine(number)
        for number in range(len(self.workers)):
            self.start_worker(number)

    def _furnish(self) -> None:
        now = self.clock.utc()
        definition = ResourceDefinition(id="d", name=TYPE, schema={"type": "object"})
        pipeline = ResourceRecord(id="p", type="pipeline", name="p", spec=PIPELINE, created_at=now, updated_at=now)
        records: dict[str, Any] = {keys.definition(TYPE): definition, keys.resource("pipeline", "p"): pipeline}
        for name in dict.fromkeys(DRIVERS):
            events = ("create", "update", "delete")
            records[keys.driver(name)] = DriverRecord(name=name, types=(TYPE,), events=events, direct=False)
            self.server.add_consumer(subjects.driver_consumer(name), MESSAGES, subjects.step_dispatch(name, TYPE))
        self.server.add_consumer(subjects.RESULT_CONSUMER, RESULTS, subjects.RESULT)
        for key, record in records.items():
            self.server.commit([Write(key, record.encode())])

    # -- processes -----------------------------------------------------------------------------------------------

    @property
    def processes(self) -> list[Process]:
        """All there are, frozen ones too."""
        return [it for it in (*self.engines, *self.workers) if it is not None]

    def start_engine(self, number: int) -> None:
        """In the place of one that is no more."""
        engine = EngineProcess(self.server, f"engine {number}")
        engine.on_hint = self._hint
        self.engines[number] = engine

    def start_worker(self, number: int) -> None:
        """In the place of one that is no more."""
        worker = WorkerProcess(self.server, f"worker {number}", DRIVERS[number], self._begin)
        self.workers[number] = worker

    def kill(self, process: Process, arrive: int = 0) -> None:
        """`kill -9`, once the first of what it had sent has arrived."""
        if isinstance(process, WorkerProcess):
            self._stand_ins.died(process.manager._lease._record.pid)
        process.kill(arrive)
        if isinstance(process, WorkerProcess):
            self.model.dead.add(process.instance)
            self.workers[self.workers.index(process)] = None
        elif isinstance(process, EngineProcess):
            self.engines[self.engines.index(process)] = None
        self.check()

    def ask(self, engine: EngineProcess, request: Request, work: Any) -> None:
        """A client's request."""
        self.requests.append(request)
        engine.request(request, work)
        self.check()

    def jobs(self) -> list[Job]:
        """User code that may end by itself."""
        found = [job for it in self.workers if it is not None and not it.frozen for job in it.jobs]
        return [job for job in found if not job.ending.done()]

    def _hint(self) -> None:
        for worker in self.workers:
            if worker is not None and not worker.away:
                for callback in worker.hints:
                    worker.loop.call_soon(callback, None)
                worker.settle()

    # -- time ----------------------------------------------------------------------------------------------------

    def ready(self) -> list[Op]:
        """What may happen next, in the order in which it was asked for."""
        found = (op for it in self.processes for op in it.ready())
        return sorted((op for op in found if not (self.results_wait and op.what == _RESULTS)), key=lambda op: op.order)

    def release(self, op: Op, *, answered: bool = True) -> None:
        """Let it happen."""
        op.process.release(op, answered=answered)
        self.check()

    def quiet(self) -> None:
        """Let happen what can, one after another, until nothing is left."""
        for _ in range(3000):
            ready = self.ready()
            if not ready:
                return
            self.release(ready[0])
        raise Violation(f"no end to what happens: {[op.what for op in self.ready()]}")

    def advance(self, seconds: float, *, busy: bool = True) -> None:
        """Let time pass. Not `busy`: what was asked for waits, but never for long."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now = min(self.clock.now + 1.0, until)
            self.server.expire()
            for process in self.processes:
                process.settle()
            self.check()
            if busy:
                self.quiet()
            while late := [op for op in self.ready() if op.since < self.clock.now - PATIENCE]:
                self.release(late[0])

    # -- what the model is told ----------------------------------------------------------------------------------

    def _wrote(self, change: Change) -> None:
        self.model.wrote(change.key, change.value)

    def _published(self, stream: str, item: Item) -> None:
        if stream == RESULTS and (result := orjson.loads(item.data).get("cv")):
            numbers = (result["run_id"], result["step"], result["attempt"], result["takeover"])
            self.model.stored(numbers, result["instance"], result["status"], result.get("retryable", False))
        elif stream == DLQ:
            run_id, step, attempt, takeover = (item.headers[it] for it in (H_RUN, H_STEP, H_ATTEMPT, H_TAKEOVER))
            self.model.letters.add((run_id, step, int(attempt), int(takeover)))

    def _acked(self, consumer: str, item: Item) -> None:
        if consumer == subjects.RESULT_CONSUMER:
            result = orjson.loads(item.data)["cv"]
            self.model.taken_in((result["run_id"], result["step"], result["attempt"], result["takeover"]))

    def _begin(self, job: Job) -> None:
        try:
            self.model.begin(job.worker.instance, job.numbers, job.resource_id, job.event)
        except Violation as error:
            self.faults.append(str(error))

    def _one_at_a_time(self) -> None:
        """I2, I3: of one resource, one thing is done at a time. Who is frozen does nothing."""
        working: dict[str, Job] = {}
        for worker in self.workers:
            for job in worker.jobs if worker is not None and not worker.frozen else ():
                other = working.setdefault(job.resource_id, job)
                if other is not job:
                    raise Violation(f"I2, I3: {job.numbers} is worked on while {other.numbers} is")

    def check(self) -> None:
        """Raises Violation if anything went wrong that could not be said at once."""
        for engine in self.engines:
            if engine is not None and engine.failed:
                raise engine.failed[0]
        for worker in self.workers:
            if worker is not None and worker.exit is not None and not isinstance(worker.exit, _MAY_END):
                raise worker.exit
        for request in self.requests:
            if request.outcome == "ok" and request.run_id and request.verb in ("post", "apply"):
                self.model.answered.add(request.run_id)
        if self.faults:
            raise Violation("\n".join(self.faults))
        self._one_at_a_time()

    # -- the end -------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """From now on nothing is broken."""
        self.results_wait = False
        for process in self.processes:
            if process.frozen:
                process.frozen = False
                process.settle()
            if process.away:
                process.join()
            self.check()
        self.bring_up()

    def bring_up(self) -> None:
        """Start what is no more."""
        for number, worker in enumerate(self.workers):
            if worker is not None and worker.ended:
                self.kill(worker)
            if self.workers[number] is None:
                self.start_worker(number)
        for number, engine in enumerate(self.engines):
            if engine is None:
                self.start_engine(number)

    def drain(self) -> None:
        """Work goes well until everything has ended."""
        self.heal()
        for _ in range(400):
            self.quiet()
            while jobs := self.jobs():
                jobs[0].end("ok")
                self.check()
                self.quiet()
            if not self._under_way():
                break
            self.advance(1.0)
            self.bring_up()
        self.model.ended()

    def _under_way(self) -> bool:
        owed = any(self.model.owes(record) for record in self.model.resources.values())
        live = any(run["status"] in ("Accepted", "Running") for run in self.model.runs.values())
        return owed or live or any(not it.counted and it.honest for it in self.model.results.values())

    def close(self) -> None:
        """Leave nothing."""
        for process in self.processes:
            process.kill()
        self._stand_ins.undo()

    def copy_result(self, pick: int) -> None:
        """An earlier result once more, as a late retry would store it."""
        items = self.server.streams[RESULTS]
        if items:
            item = items[pick % len(items)]
            headers = {key: value for key, value in item.headers.items() if key != "Nats-Msg-Id"}
            self.server.publish(RESULTS, Message(item.subject, item.data, headers=headers))
            self.check()

    def copy_dispatch(self, pick: int) -> None:
        """An earlier dispatch once more."""
        items = self.server.streams[MESSAGES]
        if items:
            item = items[pick % len(items)]
            headers = {key: value for key, value in item.headers.items() if key != "Nats-Msg-Id"}
            self.server.publish(MESSAGES, Message(item.subject, item.data, headers=headers))
            self.check()
