"""The life of one delivery: decode, claim, reconcile, publish, ack. In this order, and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from datetime import datetime

from pydantic import ValidationError

from conveyor_runtime.bus import Delivery
from conveyor_runtime.models import Resource, Status, StepResult, utc_now
from conveyor_runtime.orchestra.disk import disk_of
from conveyor_runtime.reconcile import outcome
from conveyor_runtime.reconcile.admission import Admission
from conveyor_runtime.reconcile.again import give_back
from conveyor_runtime.reconcile.claims import BUSY_RETRY, Claims
from conveyor_runtime.reconcile.context import RunContext
from conveyor_runtime.reconcile.deps import Deps
from conveyor_runtime.reconcile.heartbeat import Heartbeats
from conveyor_runtime.reconcile.invoke import Invocation, Stop, StuckError
from conveyor_runtime.reconcile.jobs import Job, Jobs
from conveyor_runtime.reconcile.logger import DriverLogger
from conveyor_runtime.reconcile.outcome import Outcome
from conveyor_runtime.reconcile.publish import publish_result
from conveyor_runtime.reconcile.work import UndecodableError, Work, decode, payload_of, unreadable
from conveyor_runtime.store import keep_dead_letter
from conveyor_runtime.telemetry import metrics

log = logging.getLogger(__name__)

#: Seconds a worker that gives up its attempt waits for the last lines of its log to be stored.
_LAST_LINES = 2.0


#: What a reconcile counts as that ended without an outcome: another worker has its attempt.
_GIVEN_UP = "given up"


class Dispatch:
    """Handles deliveries; `jobs` are those in hand."""

    def __init__(self, deps: Deps, jobs: Jobs) -> None:
        self.deps = deps
        self.jobs = jobs
        self.claims = Claims(deps.state, deps.lease)
        self._admission: Admission | None = None
        if deps.driver.uses is not None:
            self._admission = Admission(deps.driver, deps.settings, deps.state, deps.lease.has, self._free_disk)
        self._heartbeats = Heartbeats()
        self._seconds = metrics.RECONCILE_SECONDS.labels(driver=deps.driver.name)
        self._ended = {
            outcome: metrics.RECONCILES.labels(driver=deps.driver.name, outcome=outcome)
            for outcome in (*Status, _GIVEN_UP)
        }

    async def handle(self, delivery: Delivery) -> None:
        """See one delivery through."""
        try:
            work = decode(delivery)
        except UndecodableError as error:
            await self._refuse(delivery, str(error))
            return
        # Plain work bears no attempt; the message itself names it.
        key = (work.run_id, work.step, 0, delivery.stream_seq) if work.plain else work.numbers
        job = self.jobs.begin(key, work)
        if job is None:
            # Redelivered while it is in hand: whoever has it will ack it.
            await delivery.nak(BUSY_RETRY)
            return
        self._heartbeats.begin(delivery)
        try:
            await self._handle(job, delivery)
        finally:
            self._heartbeats.end(delivery)
            self.jobs.end(key)

    async def _handle(self, job: Job, delivery: Delivery) -> None:
        """Claim, reconcile, publish, ack. Plain work has nothing to claim: at least once is all it is promised."""
        work, deps = job.work, self.deps
        node, refusal = self._place(work)
        if self._admission is not None and refusal is None and not work.plain:
            admitted = await self._admission.admit(work, node)
            if admitted is False:
                await give_back(delivery, deps.state, self._admission.look_again_in())
                return
            refusal = admitted if admitted is not True else None
        if not work.plain and not await self.claims.take(work, node, delivery):
            return
        started = utc_now()
        logger = self._logger(work)
        try:
            result = refusal or await self._reconcile(job, logger, node)
            if result is None:
                await _flush_soon(logger)
                if not work.plain:
                    await self.claims.give_up(work, job.stop_why)
                await delivery.nak(BUSY_RETRY)
                return
            await logger.flush()
            await publish_result(deps.bus, deps.results, work, self._complete(work, result, node, started))
            await delivery.ack()
        except StuckError as stuck:
            await self._leave_stuck(job, stuck, logger)
        finally:
            await logger.close()

    async def _leave_stuck(self, job: Job, stuck: StuckError, logger: DriverLogger) -> None:
        """User code does not end: first see to the end of this process, which is what ends it; then say so.

        Only a timeout is written into the claim. In every other case the claim stays, so that nobody takes the attempt
        over before this process is gone.
        """
        job.stuck = True
        self.deps.stuck(stuck.why)
        logger.error(str(stuck))
        await _flush_soon(logger)
        if stuck.why is Stop.TIMEOUT and not job.work.plain:
            await self.claims.give_up(job.work, stuck.why)

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

    def _free_disk(self, node: str) -> int | None:
        """Bytes left on the disk of a node; None where that cannot be told."""
        disk = disk_of(self.deps.orchestra.by_node(node)) if self.deps.orchestra is not None else None
        return disk.free if disk is not None else None

    async def _reconcile(self, job: Job, logger: DriverLogger, node: str) -> Outcome | None:
        """The outcome of user code; None if this worker must leave the attempt to another."""
        work, deps = job.work, self.deps
        if not deps.driver.takes(work.resource.type, work.message.event):
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
        self._seconds.observe(taken)
        self._ended[result.status if result else _GIVEN_UP].inc()
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
            epoch=deps.epoch,
            settings=deps.settings,
            deadline=None if work.timeout is None else time.monotonic() + work.timeout,
            client_=deps.client,
            orchestra_=deps.orchestra,
            lease_held=deps.lease.held,
        )
        return Invocation(deps.driver, payload, context, logger, deps.settings.kill_grace, deps.executor)

    def _complete(self, work: Work, result: Outcome, node: str, started: datetime) -> StepResult:
        return work.result(
            self.deps.driver.name,
            result,
            node=node,
            instance=self.deps.lease.id,
            started_at=started,
            finished_at=utc_now(),
        )

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

    # -- what fits no contract -------------------------------------------------------------------------------------

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
