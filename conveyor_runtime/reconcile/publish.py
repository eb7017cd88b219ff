"""Publishes results: Conveyor's envelope, with ours beside it. Tried until it is stored, while the process lives."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace

import orjson

from conveyor_runtime.bus import Bus, Committer, Message, PayloadTooLarge, subjects
from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.models import Status, StepResult
from conveyor_runtime.models.message import H_ATTEMPT, H_RESULT, H_RUN, H_STEP, H_TAKEOVER, encode_driver_result
from conveyor_runtime.reconcile.work import Work

log = logging.getLogger(__name__)


def encode_result(work: Work, result: StepResult) -> bytes:
    """The PipelineEvent on the wire. The resource goes back as it came, byte for byte."""
    said = encode_driver_result(result.driver, result.status, result.message, result.data)
    head = orjson.dumps({"event": "driver.result", "run_id": result.run_id})[:-1]
    own = b"" if work.plain else b',"cv":' + result.encode()
    payload = work.message.payload.encode()
    return head + b',"resource":' + payload + b',"driverresult":' + said + own + b"}"


async def publish_result(bus: Bus, committer: Committer, work: Work, result: StepResult) -> None:
    """Store the result. A late one is refused by its numbers, so it is always safe to go on trying."""
    headers = None
    msg_id = f"{work.run_id}.{result.driver}.{work.message.id}"
    if not work.plain:
        msg_id = result.msg_id
        headers = {
            H_RESULT: "1",
            H_RUN: result.run_id,
            H_STEP: result.step,
            H_ATTEMPT: str(result.attempt),
            H_TAKEOVER: str(result.takeover),
        }
    unit = [Message(subjects.RESULT, encode_result(work, result), msg_id=msg_id, headers=headers)]
    while True:
        try:
            await committer.commit(unit)
        except BusUnavailable as error:
            log.warning("the result of step %s of run %s waits for the bus: %s", work.step, work.run_id, error)
            with suppress(BusUnavailable):
                await bus.wait_connected(60.0)
        except PayloadTooLarge as error:
            small = _without_what_is_large(work, result, str(error))
            if small == unit[0].data:
                raise
            unit = [Message(subjects.RESULT, small, msg_id=msg_id, headers=headers)]
        else:
            return


def _without_what_is_large(work: Work, result: StepResult, why: str) -> bytes:
    """The result as an Error without data or resource: one that can never be stored would have its work done again."""
    bare = replace(work, message=work.message.model_copy(update={"payload": "{}"}))
    update = {"status": Status.ERROR, "message": f"its result cannot be stored: {why}", "data": None}
    return encode_result(bare, result.model_copy(update=update))
