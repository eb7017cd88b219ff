"""The life of one delivery: decode, claim, reconcile, publish, ack. In this order, and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import ValidationError

from conveyor_runtime.bus import Bus, Committer, Delivery
from conveyor_runtime.config import DriverSettings
from conveyor_runtime.errors import InfrastructureError, RevisionConflict
from conveyor_runtime.models import Claim, Resource, Status, StepResult, utc_now
from conveyor_runtime.orchestra import Orchestra
from conveyor_runtime.reconcile import outcome
from conveyor_runtime.reconcile.context import RunContext
from conveyor_runtime.reconcile.driver import Driver
from conveyor_runtime.reconcile.invoke import Invocation, Stop, StuckError
from conveyor_runtime.reconcile.lease import Lease
from conveyor_runtime.reconcile.logger import DriverLogger
from conveyor_runtime.reconcile.outcome import Outcome
from conveyor_runtime.reconcile.publish import publish_result
from conveyor_runtime.reconcile.work import UndecodableError, Work, decode, payload_of, unreadable
from conveyor_runtime.store import Put, State, keep_dead_letter, keys
from conveyor_runtime.telemetry import metrics

if TYPE_CHECKING:
    from conveyor_runtime.client import Client

log = logging.getLogger(__name__)

#: Seconds between two signs to the server that a delivery is still worked on; a third of the consumer's ack_wait.
HEARTBEAT = 10.0

#: A dispatch older than this is checked against its run before it is claimed: its claims may be purged.
_OLD = timedelta(minutes=30)

#: Seconds a worker that gives up its attempt waits for the last lines of its log to be stored.
_LAST_LINES = 2.0

#: Seconds until a dispatch that another worker seems to hold is looked at again.
_BUSY_RETRY = 5.0


@dataclass
class Deps:
    """What a worker process works with."""

    driver: Driver
    settings: DriverSettings
    installation: str
    bus: Bus
    state: State
    results: Committer
    logs: Committer
    lease: Lease
    executor: Executor
    node: str
    orchestra: Orchestra | None = None
    client: Client | None = None
    stuck: Callable[[], None] = lambda: None


@dataclass
class Job:
    """An attempt this process has claimed, is claiming, or is publishing the result of."""

    work: Work
    invocation: Invocation | None = None
    stop_why: Stop | None = None

    def stop(self, why: Stop) -> None:
        """End it early; before user code starts, it never does."""
        self.stop_why = self.stop_why or why
        if self.invocation is not None:
            self.invocation.stop(why)


@dataclass
class Dispatch:
    """Handles deliveries. `jobs` are those in hand, by run, step, attempt and takeover."""

    deps: Deps
    jobs: dict[tuple[str, str, int, int], Job] = field(default_factory=dict)

    async def handle(self, delivery: Delivery) -> None:
        """See one delivery through."""
        try:
            work = decode(delivery)
        except UndecodableError as error:
            await self._refuse(delivery, str(error))
            return
        async with _heartbeat(delivery):
            if work.plain:
                await self._handle_plain(work, delivery)
            elif work.numbers in self.jobs:
                # Redelivered while it is in hand: whoever has it will ack it.
                await delivery.nak(_BUSY_RETRY)
            else:
                job = self.jobs[work.numbers] = Job(work)
                try:
                    await self._handle(job, delivery)
                finally:
                    del self.jobs[work.numbers]

    async def _handle(self, job: Job, delivery: Delivery) -> None:
        work, deps = job.work, self.deps
        node, refusal = self._place(work)
        if not await self._claim(work, node, delivery):
            return
        started = utc_now()
        logger = self._logger(work)
        try:
            result = refusal or await self._reconcile(job, logger, node)
            if result is None:
                await _flush_soon(logger)
                await self._give_up(work, job.stop_why)
                await delivery.nak(_BUSY_RETRY)
                return
            await logger.flush()
            await publish_result(deps.bus, deps.results, work, self._complete(work, result, node, started))
            await delivery.ack()
        except StuckError as stuck:
            logger.error(str(stuck))
            await _flush_soon(logger)
            await self._give_up(work, stuck.why)
            deps.stuck()
        finally:
            await logger.close()

    # -- claim ---------------------------------------------------------------------------------------------------

    async def _claim(self, work: Work, node: str, delivery: Delivery) -> bool:
        """Whether this attempt is ours now. If not, the delivery has been answered."""
        deps = self.deps
        if not deps.lease.held():
            await delivery.nak(_BUSY_RETRY)
            return False
        if utc_now() - delivery.time > _OLD and not await self._still_open(work):
            await delivery.ack()
            return False
        claim = Claim(instance=deps.lease.id, node=node, at=utc_now())
        try:
            await deps.state.commit(Put(keys.claim(*work.numbers), claim, 0))
        except RevisionConflict:
            await self._claimed_already(work, delivery)
            return False
        if not deps.lease.held():
            await self._give_up(work, Stop.LEASE)
            await delivery.nak(_BUSY_RETRY)
            return False
        return True

    async def _claimed_already(self, work: Work, delivery: Delivery) -> None:
        if not await self._still_open(work):
            await delivery.ack()
            return
        found = await self.deps.state.claim(*work.numbers)
        if found is not None and found.record.instance == self.deps.lease.id and not found.record.given_up:
            # Ours, and nothing of this process works on it: a handler that failed between claim and result.
            await self._give_up(work, None)
        await delivery.nak(_BUSY_RETRY)

    async def _still_open(self, work: Work) -> bool:
        found = await self.deps.state.run(work.run_id)
        if found is None or found.record.status.terminal:
            return False
        state = found.record.steps.get(work.step)
        return state is not None and state.open and (state.attempt, state.takeover) == (work.attempt, work.takeover)

    async def _give_up(self, work: Work, why: Stop | None) -> None:
        """Say in the claim that no result will come from here, so that the engine goes on without waiting."""
        for _ in range(5):
            found = await self.deps.state.claim(*work.numbers)
            if found is None or found.record.instance != self.deps.lease.id:
                return
            update = {"timed_out": True} if why is Stop.TIMEOUT else {"given_up": True}
            claim = found.record.model_copy(update={**update, "why": why.value if why else "it failed half-way"})
            try:
                await self.deps.state.commit(Put(keys.claim(*work.numbers), claim, found.revision))
            except RevisionConflict:
                continue
            return

    # -- reconcile -----------------------------------------------------------------------------------------------

    def _place(self, work: Work) -> tuple[str, Outcome | None]:
        """The node this work happens on, or why it cannot happen here."""
        deps = self.deps
        if deps.orchestra is None or not deps.driver.sandbox:
            return deps.node, None
        if work.node is not None:
            return work.node, None
        try:
            return deps.orchestra.pick(deps.driver.backend_of(work.resource)).node, None
        except Exception as error:  # noqa: BLE001
            # `backend_of` is user code: whatever it raises is said in the result, or its dispatch comes back for ever.
            return deps.node, outcome.of_exception(error)

    async def _reconcile(self, job: Job, logger: DriverLogger, node: str) -> Outcome | None:
        """The outcome of user code; None if this worker must leave the attempt to another."""
        work, deps = job.work, self.deps
        if not deps.driver.record().takes(work.resource.type, work.message.event):
            return Outcome(Status.SKIPPED, f"{deps.driver.name} does not ask for {work.message.event}")
        try:
            payload = payload_of(work, deps.driver, deps.settings.defaults)
        except ValidationError as error:
            return outcome.of_bad_payload(error)
        if job.stop_why is not None:
            return Outcome(Status.CANCELLED, "stopped on request") if job.stop_why is Stop.CANCEL else None
        job.invocation = self._invocation(work, payload, logger, node)
        started = time.monotonic()
        result = await job.invocation.run()
        job.stop_why = job.stop_why or job.invocation.stopping
        taken = time.monotonic() - started
        metrics.RECONCILE_SECONDS.labels(driver=deps.driver.name).observe(taken)
        status = result.status.value if result else "given up"
        metrics.RECONCILES.labels(driver=deps.driver.name, outcome=status).inc()
        return result

    def _invocation(self, work: Work, payload: str | Resource, logger: DriverLogger, node: str) -> Invocation:
        deps = self.deps
        context = RunContext(
            run_id=work.run_id,
            step=work.step,
            attempt=work.attempt,
            takeover=work.takeover,
            driver=deps.driver.name,
            event=work.message.event,
            node=node,
            installation="" if work.plain else deps.installation,
            settings=deps.settings,
            deadline=None if work.timeout is None else time.monotonic() + work.timeout,
            client=deps.client,
            orchestra_=deps.orchestra,
            lease_held=deps.lease.held,
        )
        return Invocation(deps.driver, payload, context, logger, deps.settings.kill_grace, deps.executor)

    def _complete(self, work: Work, result: Outcome, node: str, started: datetime) -> StepResult:
        update = {"node": node, "instance": self.deps.lease.id, "started_at": started, "finished_at": utc_now()}
        return work.result(self.deps.driver.name, result).model_copy(update=update)

    def _logger(self, work: Work) -> DriverLogger:
        return DriverLogger(
            self.deps.bus,
            self.deps.logs,
            run_id=work.run_id,
            driver=self.deps.driver.name,
            pipeline=work.resource.pipeline or "",
            step=work.step,
            attempt=work.attempt,
            takeover=work.takeover,
        )

    # -- the plain contract, and what fits no contract -------------------------------------------------------------

    async def _handle_plain(self, work: Work, delivery: Delivery) -> None:
        """Another publisher's event: at least once, the result as Conveyor writes it, ack after its PubAck."""
        logger = self._logger(work)
        started = utc_now()
        try:
            result = await self._reconcile(Job(work), logger, self.deps.node)
            if result is None:
                await delivery.nak(_BUSY_RETRY)
                return
            await logger.flush()
            complete = self._complete(work, result, self.deps.node, started)
            await publish_result(self.deps.bus, self.deps.results, work, complete)
            await delivery.ack()
        except StuckError as stuck:
            logger.error(str(stuck))
            await _flush_soon(logger)
            self.deps.stuck()
        finally:
            await logger.close()

    async def _refuse(self, delivery: Delivery, reason: str) -> None:
        """Keep a copy with the reason, end the attempt it names, if any, and take the message out of the way."""
        log.error("a message on %s cannot be worked on and is kept as a dead letter: %s", delivery.subject, reason)
        await keep_dead_letter(
            self.deps.bus,
            "dispatch",
            delivery.data,
            msg_id=f"dispatch.{delivery.stream_seq}",
            reason=reason,
            subject=delivery.subject,
            headers={key: value for key, value in delivery.headers.items() if key.startswith("Cv-")},
        )
        work = unreadable(delivery)
        if work is not None:
            result = Outcome(Status.ERROR, f"its dispatch cannot be read: {reason}")
            complete = self._complete(work, result, self.deps.node, utc_now())
            await publish_result(self.deps.bus, self.deps.results, work, complete)
        await delivery.term(reason)


async def _flush_soon(logger: DriverLogger) -> None:
    """Store what has been logged, if the bus takes it at once: who hands over must not be late for that."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_LAST_LINES):
            await logger.flush()


@asynccontextmanager
async def _heartbeat(delivery: Delivery) -> AsyncIterator[None]:
    """Tell the server that the delivery is being worked on, for as long as it is."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(HEARTBEAT)
            try:
                await delivery.in_progress()
            except InfrastructureError as error:
                log.debug("no heartbeat for %s: %s", delivery.subject, error)

    task = asyncio.create_task(beat(), name="heartbeat")
    try:
        yield
    finally:
        task.cancel()
