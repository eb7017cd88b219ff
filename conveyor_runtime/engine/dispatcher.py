"""Hands open steps to drivers: one message each, published after the transition that names it is committed."""

from __future__ import annotations

import secrets

import orjson

from conveyor_runtime.bus import Bus, Committer, Message, Receipt, subjects
from conveyor_runtime.engine.overtaking import Ahead
from conveyor_runtime.errors import BusError
from conveyor_runtime.models import Overtaker, PlannedStep, Resource, RunRecord, StepState
from conveyor_runtime.models.message import (
    H_ATTEMPT,
    H_ISSUE,
    H_PRIORITY,
    H_RUN,
    H_STEP,
    H_TAKEOVER,
    H_TIMEOUT,
    META_ATTEMPT,
    META_OUTPUT,
    META_RESULT,
    META_STEP,
    encode_driver_result,
)
from conveyor_runtime.store import State, keep_dead_letter
from conveyor_runtime.telemetry import metrics


class UndeliverableError(BusError):
    """The dispatch can never be published: it is too large for the bus."""


class Dispatcher:
    """Publishes dispatches on the `messages` stream."""

    def __init__(self, state: State, bus: Bus, committer: Committer) -> None:
        self._state = state
        self._bus = bus
        self._committer = committer
        self._ahead = Ahead(state, bus)

    async def publish(self, run: RunRecord, step: PlannedStep, state: StepState) -> Receipt:
        """Publish the dispatch of a step as its state says. Raises UndeliverableError, BusUnavailable."""
        message = await self._message(run, step, state)
        metrics.DISPATCHES_PUBLISHED.inc()
        receipt = (await self._committer.commit([message]))[0]
        if H_PRIORITY in (message.headers or ()):
            numbers = {"run_id": run.run_id, "step": step.id, "attempt": state.attempt, "takeover": state.takeover}
            ahead = Overtaker(priority=run.priority, seq=receipt.seq, node=state.node, **numbers)
            await self._ahead.put(step.driver, ahead)
        return receipt

    async def keep_letter(self, run: RunRecord, step: PlannedStep, state: StepState, reason: str) -> None:
        """Keep a copy of the step's dispatch as a dead letter: nobody could work on it."""
        message = await self._message(run, step, state)
        await keep_dead_letter(
            self._bus,
            "dispatch",
            message.data,
            msg_id=f"dispatch.{message.msg_id}",
            reason=reason,
            subject=message.subject,
            headers=message.headers,
        )

    async def _message(self, run: RunRecord, step: PlannedStep, state: StepState) -> Message:
        resource = await self._payload(run, step, state)
        body = {
            "event": run.event,
            "payload": resource.model_dump_json(exclude={"pipeline"} if resource.pipeline is None else None),
            "id": secrets.token_hex(12),
            "run_id": run.run_id,
        }
        record = self._state.view.driver(step.driver)
        foreign = record is not None and record.foreign
        headers = {
            H_RUN: run.run_id,
            H_STEP: step.id,
            H_ATTEMPT: str(state.attempt),
            H_TAKEOVER: str(state.takeover),
            H_ISSUE: str(state.issue),
        }
        if step.timeout is not None:
            headers[H_TIMEOUT] = str(step.timeout)
        if run.priority and not foreign:
            headers[H_PRIORITY] = str(run.priority)
        data = orjson.dumps(body)
        if len(data) + 1024 > self._bus.max_payload:
            raise UndeliverableError(
                f"its dispatch is {len(data)} bytes, the bus takes {self._bus.max_payload};"
                " let earlier steps report less data"
            )
        msg_id = dispatch_id(run, step, state, foreign=foreign)
        return Message(dispatch_subject(run, step, state), data, msg_id=msg_id, headers=headers)

    async def _payload(self, run: RunRecord, step: PlannedStep, state: StepState) -> Resource:
        """The pinned resource with what earlier steps reported, and with the numbers a foreign driver echoes."""
        resource = await self._state.run_input(run)
        metadata = dict(resource.metadata)
        for other in run.plan or ():
            done = run.steps.get(other.id)
            if done is None or not done.reported:
                continue
            data = await self._state.step_data(done)
            result = encode_driver_result(other.driver, done.status, done.message, data)
            metadata[META_RESULT + other.driver] = result.decode()
            metadata[META_OUTPUT + other.id] = orjson.dumps(data).decode()
        metadata[META_STEP] = step.id
        metadata[META_ATTEMPT] = str(state.attempt)
        return resource.model_copy(update={"metadata": metadata})


def dispatch_subject(run: RunRecord, step: PlannedStep, state: StepState) -> str:
    """Where a step's dispatch goes: to any process of its driver, or to those on the node it must meet."""
    if state.node is not None:
        return subjects.node_dispatch(step.driver, state.node, run.type)
    return subjects.step_dispatch(step.driver, run.type)


def dispatch_id(run: RunRecord, step: PlannedStep, state: StepState, *, foreign: bool = False) -> str:
    """The Msg-Id of a step's dispatch as its state says."""
    numbers = (run.run_id, step.id, state.attempt)
    # A foreign driver acks before it works, so a second message would be a second run of the attempt.
    return ".".join(map(str, numbers if foreign else (*numbers, state.takeover, state.issue)))
