"""Messages on the bus: Conveyor's wire format with our additions. The shapes are the Go SDK's, captured and replayed
in tests/wire."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import Field, field_validator

from conveyor_runtime.models.base import Model
from conveyor_runtime.models.resource import Resource
from conveyor_runtime.models.result import Status

H_RUN = "Cv-Run"
H_STEP = "Cv-Step"
H_ATTEMPT = "Cv-Attempt"
H_TAKEOVER = "Cv-Takeover"
H_ISSUE = "Cv-Issue"
H_TIMEOUT = "Cv-Timeout"
H_PRIORITY = "Cv-Priority"
H_RESULT = "Cv-Result"
H_REASON = "Cv-Reason"

#: Metadata keys that the Go SDK echoes in its result: how a foreign result finds its step.
META_STEP = "cv.step"
META_ATTEMPT = "cv.attempt"
META_RESULT = "driverresults."
META_OUTPUT = "steps."


class DriverMessage(Model):
    """What a driver is handed. `payload` is the Resource as a JSON string; an object is read too."""

    event: str = ""
    payload: str = ""
    id: str = ""
    run_id: str = ""

    @field_validator("payload", mode="before")
    @classmethod
    def _payload_as_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return value
        try:
            return orjson.dumps(value).decode()
        except TypeError as error:
            raise ValueError(f"the payload cannot be kept: {error}") from None


class DriverResultEvent(Model):
    """A driver's answer as Conveyor writes it."""

    success: bool = False
    message: str = ""
    data: Any = None
    driver: str = ""


def encode_driver_result(driver: str, status: Status, message: str, data: Any) -> bytes:
    """The JSON of a DriverResultEvent. Nothing is left out: Conveyor's clients read every field."""
    return orjson.dumps({"success": status is Status.SUCCEEDED, "message": message, "data": data, "driver": driver})


class PipelineEvent(Model):
    """The envelope on `pipelines.>`; `event` is `driver.result` for results, `create` for an init."""

    event: str = ""
    run_id: str = ""
    resource: Resource[Any] = Field(default_factory=Resource[Any])
    driverresult: DriverResultEvent = DriverResultEvent()
