"""Drivers built on Conveyor's own SDK: known by their consumer, they ack before they work and send no heartbeat.

They are handed a step at most once per attempt, and only while their consumer is there to keep it. Whether they have
taken it is told by their consumer: it was acknowledged. From then on the step waits for a result or its timeout.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta

from conveyor_runtime.bus import Bus, subjects
from conveyor_runtime.bus.consumers import consumer_info, list_consumers
from conveyor_runtime.bus.messages import delete_message, next_by_subject
from conveyor_runtime.bus.streams import DUPLICATE_WINDOW, MESSAGES
from conveyor_runtime.engine import steps
from conveyor_runtime.engine.dispatcher import dispatch_id, dispatch_subject
from conveyor_runtime.engine.transitions import Transitions
from conveyor_runtime.errors import InfrastructureError, RevisionConflict
from conveyor_runtime.models import DriverRecord, PlannedStep, RunRecord, Status, StepState, is_name
from conveyor_runtime.store import Put, State, keys

log = logging.getLogger(__name__)

#: Seconds a foreign driver may work on a step that names no timeout.
DEFAULT_TIMEOUT = 3600.0

#: Time after its issue was noted in which a second publication is surely told as one: the clocks of other machines
#: differ, and publishing takes a moment.
_SURELY_TOLD = timedelta(seconds=DUPLICATE_WINDOW - 30)

#: Seconds between two looks when no advisory comes, and between looks at steps a foreign driver works on.
_SCAN_PERIOD = 15.0
LOOK_PERIOD = 1.0


class ForeignDrivers:
    """Finds them. `present` are the names whose consumer exists."""

    def __init__(self, state: State, bus: Bus) -> None:
        self._state = state
        self._bus = bus
        self._changed = asyncio.Event()
        self.present: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Scan now, at each advisory that a consumer came or went, and every quarter of a minute."""
        advisory = f"$JS.EVENT.ADVISORY.CONSUMER.*.{MESSAGES}.>"
        unsubscribe = await self._bus.subscribe_core(advisory, lambda message: self._changed.set())
        try:
            while True:
                self._changed.clear()
                try:
                    await self.scan()
                except InfrastructureError as error:
                    log.warning("could not look for foreign drivers: %s", error)
                try:
                    async with asyncio.timeout(_SCAN_PERIOD):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        finally:
            await unsubscribe()

    async def scan(self) -> None:
        """Read the consumers of `messages`; write the record of each foreign driver that is new."""
        found: dict[str, set[str]] = {}
        for info in await list_consumers(self._bus, MESSAGES):
            name, config = info["name"], info["config"]
            if name.startswith(subjects.CONSUMERS) or not is_name(name):
                continue
            filters = config.get("filter_subjects") or [config.get("filter_subject", "")]
            types = {type_ for subject in filters if (type_ := _type_of(subject, name)) is not None}
            if types:
                found[name] = types
        for name, types in found.items():
            await self._register(name, tuple(sorted(types)))
        went_or_came = self.present != frozenset(found)
        self.present = frozenset(found)
        if went_or_came:
            for name in found:
                self._state.view.touch("driver", name)

    async def _register(self, name: str, types: tuple[str, ...]) -> None:
        known = await self._state.driver(name)
        record = DriverRecord(name=name, types=types, sdk="foreign", direct=True)
        if known is not None and not known.record.foreign:
            log.warning("a foreign consumer bears the name of our driver %s: it would take its events twice", name)
            return
        if known is None or known.record != record:
            try:
                await self._state.commit(Put(keys.driver(name), record, known.revision if known else 0))
                log.info("foreign driver %s serves %s", name, ", ".join(types))
            except RevisionConflict:
                pass


class ForeignSteps:
    """Sees to the open steps of foreign drivers."""

    def __init__(self, transitions: Transitions, bus: Bus) -> None:
        self._transitions = transitions
        self._bus = bus

    async def examine(self, run: RunRecord, step: PlannedStep, state: StepState) -> RunRecord:
        """The run after whatever this step's message and clock call for."""
        end, now = self._transitions.end_step, self._transitions.now()
        over = _over_before_taken(run, step, state, now)
        if state.issue == 0:
            return await end(run, step, state, *over) if over is not None else run
        if state.foreign_seq is None:
            return await self._note_sequence(run, step, state, now)
        if await self._waits(run, step, state, state.foreign_seq):
            # Nobody will work on it once it is gone, unless it was taken at this moment: then the next look tells.
            if over is not None and await delete_message(self._bus, MESSAGES, state.foreign_seq):
                return run if await self._was_taken(step, state.foreign_seq) else await end(run, step, state, *over)
            return run
        if state.due is None:
            due = now + timedelta(seconds=step.timeout or DEFAULT_TIMEOUT)
            return await self._update(run, step, state, {"due": due, "started_at": now})
        if state.due <= now:
            return await end(run, step, state, Status.TIMED_OUT, "no result came within its timeout")
        return run

    async def _note_sequence(self, run: RunRecord, step: PlannedStep, state: StepState, now: datetime) -> RunRecord:
        """Note where the dispatch is stored: as long as the server knows its Msg-Id, a second publishing tells; later
        it is looked for among those that wait."""
        if state.issued_at is not None and now - state.issued_at < _SURELY_TOLD:
            receipt = await self._transitions.dispatcher.publish(run, step, state)
            return await self._update(run, step, state, {"foreign_seq": receipt.seq})
        msg_id = dispatch_id(run, step, state, foreign=True)
        subject = dispatch_subject(run, step, state)
        info = await consumer_info(self._bus, MESSAGES, step.driver)
        sequence = int(info["ack_floor"]["stream_seq"]) + 1 if info is not None else 1
        while (message := await next_by_subject(self._bus, MESSAGES, subject, sequence)) is not None:
            if message.headers.get("Nats-Msg-Id") == msg_id:
                return await self._update(run, step, state, {"foreign_seq": message.seq})
            sequence = message.seq + 1
        due = now + timedelta(seconds=step.timeout or DEFAULT_TIMEOUT)
        return await self._update(run, step, state, {"foreign_seq": 0, "due": due, "started_at": now})

    async def _waits(self, run: RunRecord, step: PlannedStep, state: StepState, sequence: int) -> bool:
        """Whether the dispatch with this sequence can still be taken."""
        if sequence == 0 or await self._was_taken(step, sequence):
            return False
        message = await next_by_subject(self._bus, MESSAGES, dispatch_subject(run, step, state), sequence)
        return message is not None and message.seq == sequence

    async def _was_taken(self, step: PlannedStep, sequence: int) -> bool:
        """Whether the driver has acknowledged this sequence, in the order of which it does. What it was handed before
        that may lie in its buffer for long. One without its consumer took nothing of late."""
        info = await consumer_info(self._bus, MESSAGES, step.driver)
        return info is not None and int(info["ack_floor"]["stream_seq"]) >= sequence

    async def _update(
        self, run: RunRecord, step: PlannedStep, state: StepState, update: dict[str, object]
    ) -> RunRecord:
        def change(record: RunRecord) -> RunRecord:
            noted = record.steps[step.id].model_copy(update=update)
            return record.model_copy(update={"steps": {**record.steps, step.id: noted}})

        return await self._transitions.change_step(run, step, state, change)


def _over_before_taken(run: RunRecord, step: PlannedStep, state: StepState, now: datetime) -> tuple[Status, str] | None:
    """How a step ends that no driver has taken yet; None if one is still waited for."""
    if run.cancels(step):
        return Status.CANCELLED, "cancelled before a driver took it"
    left = steps.queue_left(step, state, now)
    return (Status.TIMED_OUT, steps.not_taken(step)) if left is not None and left <= 0 else None


def _type_of(subject: str, driver: str) -> str | None:
    """The resource type of a filter `drivers.<driver>.resources.<type>`; None if it is another subject."""
    parts = subject.split(".")
    if (
        len(parts) == 4
        and parts[0] == "drivers"
        and parts[1] == driver
        and parts[2] == "resources"
        and is_name(parts[3])
    ):
        return parts[3]
    return None
