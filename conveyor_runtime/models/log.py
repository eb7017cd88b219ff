"""One line of a run's log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import Field, field_validator, model_validator

from conveyor_runtime.models.base import Model


class LogLine(Model):
    """Conveyor's five fields as they are (`timestamp` = unix seconds as a string) and ours.

    `time` is RFC 3339 with nanoseconds; `(step, attempt, takeover, seq)` names a line of ours for ever, so that readers
    can drop what they have seen. `run_id` and RFC 3339 in `timestamp` are read too.
    """

    runid: str = ""
    driver: str = ""
    pipeline: str = ""
    timestamp: str = ""
    message: str = ""
    time: str = ""
    seq: int | None = None
    step: str = ""
    attempt: int = 0
    takeover: int = 0
    stream: str = ""
    level: str = "info"
    labels: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _other_spelling(cls, value: Any) -> Any:
        if isinstance(value, dict) and "run_id" in value and not value.get("runid"):
            value = {**value, "runid": value["run_id"]}
        return value

    @field_validator("timestamp", mode="before")
    @classmethod
    def _timestamp_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) else value

    @property
    def at(self) -> datetime | None:
        """When it was logged, UTC; None if the line does not say."""
        for text in (self.time, self.timestamp):
            try:
                return datetime.fromtimestamp(float(text), UTC)
            except (ValueError, OverflowError, OSError):
                pass
            try:
                at = datetime.fromisoformat(text)
            except ValueError:
                continue
            return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        return None
