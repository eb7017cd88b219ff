"""The two kinds of processes, made of the product's own parts: an engine with its API's intake, a driver process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, cast

from conveyor_runtime.bus import Message, Receipt, Slots, subjects
from conveyor_runtime.bus.streams import MESSAGES, RESULTS
from conveyor_runtime.config import DriverSettings
from conveyor_runtime.engine import Engine, Intake
from conveyor_runtime.engine.sweep import Sweep
from conveyor_runtime.errors import ConveyorError, RequestError, RetryableError
from conveyor_runtime.models import DriverResult, Resource
from conveyor_runtime.reconcile import Driver, DriverLogger, DriverManager, RunContext
from conveyor_runtime.reconcile.manager import ManagerDeps
from conveyor_runtime.store import State, View
from tests.model.gates import GatedCommitter, GatedPuller, GatedStore, Line
from tests.model.process import Process
from tests.model.server import Server

TYPE = "thing"

Numbers = tuple[str, str, int, int]


@dataclass(eq=False)
class Request:
    """What a client asked: `outcome` is "" while nobody knows, else ok or refused."""

    verb: str
    name: str
    outcome: str = ""
    run_id: str = ""


class EngineProcess(Process):
    """`conveyor serve` without HTTP."""

    def __init__(self, server: Server, name: str) -> None:
        super().__init__(server, name)
        self.failed: list[BaseException] = []
        self.spawn(self._serve())

    async def _serve(self) -> None:
        view = View(cast(Any, GatedStore(self)))
        state = State(cast(Any, GatedStore(self)), view)
        await view.start()
        bus = cast(Any, Line(self))
        puller = GatedPuller(bus, RESULTS, subjects.RESULT_CONSUMER, Slots(64), on_missing=None)
        messages = GatedCommitter(self, MESSAGES)
        self.engine = Engine(state, bus, cast(Any, messages), cast(Any, puller), self.clock.utc)
        self.intake = Intake(self.engine)
        self.sweep = Sweep(self.engine, bus)
        for part in (self.engine.run(), self.engine.liveness.run(), self.sweep.run(), view.wait_failed()):
            self.loop.create_task(part).add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not self.dead:
            self.failed.append(task.exception() or AssertionError("a part of an engine ended"))

    def request(self, request: Request, work: Coroutine[Any, Any, Any]) -> None:
        """Serve a client."""
        self.spawn(self._request(request, work))

    async def _request(self, request: Request, work: Coroutine[Any, Any, Any]) -> None:
        try:
            done = await work
        except RequestError:
            request.outcome = "refused"
        except ConveyorError:
            return  # 503: nobody knows
        else:
            request.outcome, request.run_id = "ok", getattr(done, "run_id", "")

    def look_around(self) -> None:
        """Sweep now."""
        self.spawn(self.sweep.sweep()).add_done_callback(_unknown)


def _unknown(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


@dataclass(eq=False)
class Job:
    """User code at work: `end(how)` lets it end by itself."""

    worker: WorkerProcess
    numbers: Numbers
    resource_id: str
    event: str
    ending: asyncio.Future[str]

    def end(self, how: str) -> None:
        """ok, fail, again (a failure that another attempt mends), or requeue."""
        if not self.ending.done():
            self.ending.set_result(how)
        self.worker.settle()


class _Log:
    """Takes every line at once: what becomes of lines is not looked at here."""

    async def commit(self, unit: Sequence[Message]) -> list[Receipt]:
        return [Receipt(0, False) for _ in unit]


class WorkerProcess(Process):
    """`conveyor driver run`. `jobs` is what its user code is doing."""

    def __init__(
        self,
        server: Server,
        name: str,
        driver: str,
        started: Callable[[Job], None],
    ) -> None:
        super().__init__(server, name)
        self.driver = driver
        self.jobs: list[Job] = []
        self.started = started
        self.instance = ""
        self.exit: BaseException | None = None
        self.ended = False
        self.draining = False
        self.spawn(self._work())

    async def _work(self) -> None:
        driver = Driver(self.driver, (TYPE,), self._reconcile, events=("create", "update", "delete"), direct=False)
        deps = ManagerDeps(
            bus=cast(Any, Line(self)),
            state=State(cast(Any, GatedStore(self))),
            results=cast(Any, GatedCommitter(self, RESULTS)),
            logs=cast(Any, _Log()),
            installation="model",
        )
        settings = DriverSettings(concurrency=2, drain_grace=5.0, kill_grace=1.0)
        self.manager = DriverManager(driver, settings, deps)
        self.instance = self.manager._lease.id
        try:
            await self.manager.run()
        except BaseException as error:
            self.exit = error
        finally:
            self.ended = True

    def drain(self) -> None:
        """SIGTERM."""
        self.draining = True
        self.manager.drain()
        self.settle()

    async def _reconcile(
        self, payload: Resource[Any], event: str, run_id: str, logger: DriverLogger, context: RunContext
    ) -> DriverResult:
        context.ensure_current()
        ending = self.loop.create_future()
        numbers = (run_id, context.step, context.attempt, context.takeover)
        job = Job(self, numbers, payload.id, event, ending)
        self.jobs.append(job)
        self.started(job)
        try:
            how = await ending
        finally:
            self.jobs.remove(job)
        if how == "again":
            raise RetryableError("not yet")
        return DriverResult(
            success=how != "fail", message=how, data=list(numbers), requeue_after=20.0 if how == "requeue" else None
        )
