"""Results as they come off the bus, ours and foreign ones, folded into the run they belong to.

None may stay there for ever: takeovers wait until the results stored before them have been taken in. So one that cannot
be read or never be committed becomes a dead letter, and its attempt ends as Error.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import orjson
from pydantic import ValidationError

from conveyor_runtime.bus import Bus, Delivery
from conveyor_runtime.engine import planner
from conveyor_runtime.engine.transitions import Transitions
from conveyor_runtime.errors import BusUnavailable, RevisionConflict
from conveyor_runtime.models import MAX_DATA, PipelineEvent, RunRecord, Status, StepResult, is_name
from conveyor_runtime.models.message import (
    H_ATTEMPT,
    H_RESULT,
    H_RUN,
    H_STEP,
    H_TAKEOVER,
    META_ATTEMPT,
    META_STEP,
)
from conveyor_runtime.store import Blob, Put, keep_dead_letter, keys
from conveyor_runtime.telemetry import metrics

log = logging.getLogger(__name__)

#: Bytes of a result's data kept in the run record; more lies in a key of its own.
_INLINE = 4 * 1024


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
    """Keep a copy of a message nobody can use, with the reason, and take the original out of the way."""
    await _keep(bus, delivery, reason)
    await delivery.ack()


async def _keep(bus: Bus, delivery: Delivery, reason: str) -> None:
    log.error("a message on %s is kept as a dead letter: %s", delivery.subject, reason)
    await keep_dead_letter(
        bus,
        "results",
        delivery.data,
        msg_id=f"results.{delivery.stream_seq}",
        reason=reason,
        subject=delivery.subject,
        headers=delivery.headers,
    )


async def fold(transitions: Transitions, bus: Bus, run: RunRecord, deliveries: Sequence[Delivery]) -> RunRecord:
    """The run with these results in it, in one commit if that can be. What matches nothing changes nothing.

    Raises only what may pass: BusUnavailable, RevisionConflict, or that a dead letter cannot be kept now.
    """
    read = [(delivery, await _read(delivery, run, transitions, bus)) for delivery in deliveries]
    if any(result is not None and not run.awaits(result) for _, result in read):
        # Another engine may have opened its step a moment ago, so only the store can say that it is of no use.
        newest = await transitions.state.newest_run(run.run_id)
        run = newest.record if newest is not None else run
    results = [(delivery, result) for delivery, result in read if result is not None and run.awaits(result)]
    if not results:
        return run
    try:
        return await _commit(transitions, run, [result for _, result in results])
    except (BusUnavailable, RevisionConflict):
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it will be so again
        log.warning("results of run %s cannot be stored together: %s", run.run_id, error)
    for delivery, result in results:
        run = await _fold_alone(transitions, bus, run, delivery, result)
    return run


async def _fold_alone(
    transitions: Transitions, bus: Bus, run: RunRecord, delivery: Delivery, result: StepResult
) -> RunRecord:
    """The run with this result in it; if that can never be, with its attempt ended and the result set aside."""
    try:
        return await _commit(transitions, run, [result])
    except (BusUnavailable, RevisionConflict):
        raise
    except Exception as error:  # noqa: BLE001 - as above
        reason = f"its result cannot be stored: {error}"
    # Before the commit: a letter too many is a smaller evil than one too few.
    await _keep(bus, delivery, reason)
    try:
        return await _commit(transitions, run, [_ended(run, result.step, result.attempt, result.takeover, reason)])
    except (BusUnavailable, RevisionConflict):
        raise
    except Exception:
        log.exception("step %s of run %s cannot be ended", result.step, run.run_id)
        return run


def _ended(run: RunRecord, step: str, attempt: int, takeover: int, reason: str) -> StepResult:
    """What stands for a result that cannot be taken in."""
    return StepResult(
        run_id=run.run_id, step=step, attempt=attempt, takeover=takeover, status=Status.ERROR, message=reason
    )


async def _commit(transitions: Transitions, run: RunRecord, results: Sequence[StepResult]) -> RunRecord:
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
            record = planner.apply_result(record, result, now, jitter, data_key=data_key) or record
        return record

    return await transitions.change(run.run_id, change, puts=puts) or run


async def _read(delivery: Delivery, run: RunRecord, transitions: Transitions, bus: Bus) -> StepResult | None:
    """The result a message carries; None for one of the plain contract, or of no step of this run.

    One of ours that cannot be read is kept as a dead letter, and ends the attempt that its headers name.
    """
    if H_RESULT not in delivery.headers:
        return _read_foreign(delivery, run, transitions)
    try:
        return StepResult.model_validate(orjson.loads(delivery.data)["cv"])
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(f"its result cannot be read: {error!r}".split())
    await _keep(bus, delivery, reason)
    try:
        numbers = int(delivery.headers[H_ATTEMPT]), int(delivery.headers[H_TAKEOVER])
        return _ended(run, delivery.headers[H_STEP], *numbers, reason)
    except (ValueError, KeyError):
        return None


def _read_foreign(delivery: Delivery, run: RunRecord, transitions: Transitions) -> StepResult | None:
    try:
        event = PipelineEvent.model_validate_json(delivery.data)
        step_id, attempt = event.resource.metadata[META_STEP], int(event.resource.metadata[META_ATTEMPT])
        planned = run.step(step_id)
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
