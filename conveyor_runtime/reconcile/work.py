"""One dispatch, decoded: which attempt of which step it is, and the resource it is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from pydantic import ValidationError

from conveyor_runtime.bus import Delivery
from conveyor_runtime.models import DriverMessage, Resource, StepResult, is_name, parse_duration
from conveyor_runtime.models.message import H_ATTEMPT, H_RUN, H_STEP, H_TAKEOVER, H_TIMEOUT
from conveyor_runtime.reconcile.driver import Driver
from conveyor_runtime.reconcile.outcome import Outcome

#: Asking for it by its parameter costs as much as decoding it.
_AnyResource = Resource[Any]


class UndecodableError(ValueError):
    """The message is none that a driver can be handed; the text says why."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker is asked to do. `plain` work bears no attempt: another publisher sent it."""

    run_id: str
    step: str
    attempt: int
    takeover: int
    timeout: float | None
    node: str | None
    message: DriverMessage
    resource: Resource[Any]

    @property
    def plain(self) -> bool:
        """Whether it belongs to the plain contract: no claim, no record, at least once."""
        return self.attempt == 0

    @property
    def numbers(self) -> tuple[str, str, int, int]:
        """What names this attempt and takeover."""
        return (self.run_id, self.step, self.attempt, self.takeover)

    def result(
        self,
        driver: str,
        outcome: Outcome,
        *,
        node: str | None = None,
        instance: str = "",
        started_at: datetime | None = None,
        finished_at: datetime | None = None,
    ) -> StepResult:
        """The result of this attempt: what became of it, where and when."""
        return StepResult(
            run_id=self.run_id,
            step=self.step,
            attempt=self.attempt,
            takeover=self.takeover,
            driver=driver,
            status=outcome.status,
            message=outcome.message,
            data=outcome.data,
            exit_code=outcome.exit_code,
            retryable=outcome.retryable,
            requeue_after=outcome.requeue_after,
            stays=outcome.stays,
            node=node,
            instance=instance,
            started_at=started_at,
            finished_at=finished_at,
        )


def decode(delivery: Delivery) -> Work:
    """The work a delivery asks for. Raises UndecodableError."""
    headers = delivery.headers
    try:
        message = DriverMessage.model_validate_json(delivery.data)
        # Strictly, because the payload goes back as it came: it must be JSON for everybody.
        resource = _AnyResource.model_validate(orjson.loads(message.payload))
        attempt, takeover = int(headers.get(H_ATTEMPT, "0")), int(headers.get(H_TAKEOVER, "0"))
        timeout = parse_duration(headers[H_TIMEOUT]) if H_TIMEOUT in headers else None
    except (ValidationError, ValueError) as error:
        raise UndecodableError((str(error).splitlines() or ["it cannot be read"])[0]) from None
    run_id, step = headers.get(H_RUN, message.run_id), headers.get(H_STEP, "")
    if not run_id or not resource.resource:
        raise UndecodableError("it names no run or no resource type")
    if not is_name(run_id):
        raise UndecodableError(f"{run_id[:140]!r} is no run id")
    if attempt < 0 or takeover < 0 or (attempt > 0 and not is_name(step)):
        raise UndecodableError("it names no step, attempt and takeover that there could be")
    return Work(
        run_id=run_id,
        step=step,
        attempt=attempt,
        takeover=takeover,
        timeout=timeout,
        node=_node(delivery.subject),
        message=message,
        resource=resource,
    )


def unreadable(delivery: Delivery) -> Work | None:
    """The attempt that an undecodable message names in its headers, so that it can be ended; None if it names none."""
    headers = delivery.headers
    try:
        attempt, takeover = int(headers[H_ATTEMPT]), int(headers[H_TAKEOVER])
        run_id, step = headers[H_RUN], headers[H_STEP]
    except (KeyError, ValueError):
        return None
    if not (is_name(run_id) and is_name(step) and attempt > 0 and takeover >= 0):
        return None
    nothing = DriverMessage(payload="{}", run_id=run_id)
    return Work(run_id, step, attempt, takeover, None, None, nothing, Resource[Any]())


def payload_of(work: Work, driver: Driver, defaults: Mapping[str, Mapping[str, Any]]) -> str | Resource[Any]:
    """What reconcile gets: the raw text or the typed resource, with the type's defaults where its spec leaves a field
    out. Raises ValidationError."""
    if driver.payload_type is str and not defaults and not driver.defaults:
        return work.message.payload
    type_defaults = {**driver.defaults.get(work.resource.type, {}), **defaults.get(work.resource.type, {})}
    spec = work.resource.spec
    missing = {key: value for key, value in type_defaults.items() if isinstance(spec, dict) and key not in spec}
    if not missing and driver.payload_type is str:
        return work.message.payload
    raw = orjson.loads(work.message.payload)
    if missing:
        raw["spec"] = {**raw["spec"], **missing}
    if driver.payload_type is str:
        return orjson.dumps(raw).decode()
    return driver.payload_type.model_validate(raw)  # type: ignore[union-attr]


def _node(subject: str) -> str | None:
    """The node a dispatch is addressed to; None for one that any node may take."""
    parts = subject.split(".")
    return parts[3] if len(parts) > 4 and parts[2] == "node" else None
