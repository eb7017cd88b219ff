"""Results as they come off the bus, ours and foreign ones, folded into the run they belong to."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from datetime import datetime

import orjson
from pydantic import ValidationError

from conveyor_runtime.bus import Bus, Delivery
from conveyor_runtime.engine import planner, steps
from conveyor_runtime.engine.transitions import Transitions
from conveyor_runtime.models import PipelineEvent, RunRecord, Status, StepResult, is_name
from conveyor_runtime.models.message import H_RESULT, H_RUN, META_ATTEMPT, META_STEP
from conveyor_runtime.store import Blob, Put, keep_dead_letter, keys
from conveyor_runtime.telemetry import metrics

log = logging.getLogger(__name__)

#: Bytes of a result's data kept in the run record; more lies in a key of its own.
_INLINE = 4 * 1024

#: Bytes of a result's data at most.
MAX_DATA = 64 * 1024


def run_id_of(delivery: Delivery) -> str | None:
    """The run a message on `pipelines.>` belongs to; None if it cannot be read."""
    run_id = delivery.headers.get(H_RUN)
    if not run_id:
        try:
            run_id = PipelineEvent.model_validate_json(delivery.data).run_id
        except ValidationError:
            return None
    # What may not stand in a key names no run of ours, and looking for it would fail for ever.
    return run_id if is_name(run_id) else None


async def dead_letter(bus: Bus, delivery: Delivery, reason: str) -> None:
    """Keep a copy of a message nobody can read, with the reason, and take the original out of the way."""
    log.error("a message on %s cannot be read and is kept as a dead letter: %s", delivery.subject, reason)
    await keep_dead_letter(
        bus, "results", delivery.data, msg_id=f"results.{delivery.stream_seq}", reason=reason, subject=delivery.subject
    )
    await delivery.ack()


async def fold(transitions: Transitions, run: RunRecord, deliveries: Sequence[Delivery]) -> RunRecord:
    """The run with these results in it, in one commit. What matches nothing changes nothing."""
    read = (_read(delivery, run, transitions) for delivery in deliveries)
    results = [result for result in read if result is not None and steps.awaits(run, result)]
    if not results:
        return run
    kept: list[tuple[StepResult, str | None]] = []
    puts = []
    for result in results:
        size = len(orjson.dumps(result.data)) if result.data is not None else 0
        if size > MAX_DATA:
            result = _too_large(result, size)
        elif size > _INLINE:
            key = keys.run_data(result.run_id, result.step, result.attempt, result.takeover)
            puts.append(Put(key, Blob(result.data)))
            kept.append((result.model_copy(update={"data": None}), key))
            continue
        kept.append((result, None))
    metrics.RESULTS_FOLDED.inc(len(kept))
    now, jitter = transitions.now(), random.random()  # noqa: S311 - spreads retries, no secret

    def change(record: RunRecord) -> RunRecord:
        for result, data_key in kept:
            record = _apply(record, result, data_key, now, jitter)
        return record

    return await transitions.change(run.run_id, change, puts=puts) or run


def _apply(record: RunRecord, result: StepResult, data_key: str | None, now: datetime, jitter: float) -> RunRecord:
    after = planner.apply_result(record, result, now, jitter)
    if after is None:
        return record
    if data_key is not None:
        state = after.steps[result.step].model_copy(update={"data_key": data_key})
        after = after.model_copy(update={"steps": {**after.steps, result.step: state}})
    return after


def _read(delivery: Delivery, run: RunRecord, transitions: Transitions) -> StepResult | None:
    """The result a message carries; None for one of the plain contract, or of no step of this run."""
    if own := delivery.headers.get(H_RESULT):
        try:
            return StepResult.model_validate_json(orjson.dumps(orjson.loads(delivery.data)["cv"]))
        except (ValueError, KeyError, TypeError) as error:
            log.warning("result %s cannot be read: %s", own, error)
            return None
    return _read_foreign(delivery, run, transitions)


def _read_foreign(delivery: Delivery, run: RunRecord, transitions: Transitions) -> StepResult | None:
    try:
        event = PipelineEvent.model_validate_json(delivery.data)
        step_id, attempt = event.resource.metadata[META_STEP], int(event.resource.metadata[META_ATTEMPT])
        planned = steps.step_of(run, step_id)
    except (ValueError, KeyError):
        return None
    record = transitions.state.view.driver(planned.driver)
    if record is None or not record.foreign or event.event != "driver.result":
        return None
    said = event.driverresult
    state = run.steps.get(step_id)
    return StepResult(
        run_id=run.run_id,
        step=step_id,
        attempt=attempt,
        takeover=state.takeover if state else 0,
        driver=said.driver,
        status=Status.SUCCEEDED if said.success else Status.FAILED,
        message=said.message,
        data=said.data,
        instance=f"foreign:{said.driver}",
    )


def _too_large(result: StepResult, size: int) -> StepResult:
    message = f"its data is {size} bytes; at most {MAX_DATA} are kept"
    return result.model_copy(update={"status": Status.ERROR, "message": message, "data": None, "retryable": False})
