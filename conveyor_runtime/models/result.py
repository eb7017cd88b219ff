"""What a driver reports, and the states a step or a run can be in."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from conveyor_runtime.models.base import Model

#: Bytes of a result's data as JSON, at most.
MAX_DATA = 64 * 1024

#: Characters of a message or reason kept in a run record; whoever wrote it may have written megabytes.
_LONGEST_MESSAGE = 1000

#: Seconds a driver may put off its next run; more cannot be told from never.
LONGEST_REQUEUE = 366 * 86400.0


def short(message: str) -> str:
    """A message or reason as a run record keeps it: 1000 characters at most, all of which JSON can hold."""
    if not message.isascii():
        # A file name that is no UTF-8 leaves halves of characters behind.
        message = message.encode("utf-8", "replace").decode()
    return message if len(message) <= _LONGEST_MESSAGE else message[: _LONGEST_MESSAGE - 1] + "…"


class Status(StrEnum):
    """The state of a run or a step.

    Failed = the task said no; Error = the machinery failed. Skipped and AwaitingRetry are states of steps only,
    Accepted, Waiting and Cancelling of runs only.
    """

    ACCEPTED = "Accepted"
    PENDING = "Pending"
    RUNNING = "Running"
    WAITING = "Waiting"
    CANCELLING = "Cancelling"
    AWAITING_RETRY = "AwaitingRetry"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    ERROR = "Error"
    TIMED_OUT = "TimedOut"
    CANCELLED = "Cancelled"
    SKIPPED = "Skipped"

    @property
    def terminal(self) -> bool:
        """Whether nothing follows."""
        return self in _TERMINAL


_TERMINAL = frozenset(
    {Status.SUCCEEDED, Status.FAILED, Status.ERROR, Status.TIMED_OUT, Status.CANCELLED, Status.SKIPPED}
)


class DriverResult(Model):
    """What a reconcile returns.

    `data` is any JSON value, at most 64 KiB, handed to later steps. `requeue_after` (seconds) asks for another run of
    the same resource on purpose; it is no retry. `stays` names the node where what was started goes on after the run:
    later runs of the resource come to it, until one ends well without naming any.
    """

    success: bool
    message: str = ""
    data: Any = None
    requeue_after: float | None = None
    stays: str | None = None


class StepResult(Model):
    """What the runtime made of one attempt: the result together with the four numbers that name it."""

    run_id: str
    step: str
    attempt: int
    takeover: int
    driver: str = ""
    status: Status
    message: str = ""
    data: Any = None
    exit_code: int | None = None
    retryable: bool = False
    requeue_after: float | None = None
    stays: str | None = None
    node: str | None = None
    instance: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def msg_id(self) -> str:
        """The Nats-Msg-Id under which this result can be stored once."""
        return f"{self.run_id}.{self.step}.{self.attempt}.{self.takeover}"
