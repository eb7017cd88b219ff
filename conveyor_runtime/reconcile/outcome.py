"""What the runtime makes of whatever user code returned or raised: one place, one value."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from conveyor_runtime.errors import (
    BackendUnavailable,
    Gone,
    ImageNotFound,
    RetryableError,
    TaskError,
    TaskFailed,
    TaskTimedOut,
    TerminalError,
)
from conveyor_runtime.models import LONGEST_REQUEUE, MAX_DATA, DriverResult, Status, short


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt ended."""

    status: Status
    message: str = ""
    data: Any = None
    exit_code: int | None = None
    retryable: bool = False
    requeue_after: float | None = None
    stays: str | None = None


def of_return(value: object) -> Outcome:
    """The outcome of a reconcile that returned."""
    if value is None:
        return Outcome(Status.SUCCEEDED)
    if not isinstance(value, DriverResult):
        kind = type(value).__name__
        return Outcome(Status.ERROR, f"reconcile returned a {kind}; it must return a DriverResult or None")
    if (wrong := _wrong_with(value.data)) is not None:
        return Outcome(Status.ERROR, wrong)
    again = value.requeue_after
    if again is not None and not 0 <= again <= LONGEST_REQUEUE:
        return Outcome(Status.ERROR, f"requeue_after is {again}; it must be seconds from 0 to a year")
    status = Status.SUCCEEDED if value.success else Status.FAILED
    return Outcome(status, short(value.message), value.data, requeue_after=value.requeue_after, stays=value.stays)


def of_exception(error: BaseException) -> Outcome:
    """The outcome of a reconcile that raised."""
    message = short(str(error) or type(error).__name__)
    if isinstance(error, TaskError) and (wrong := _wrong_with(error.data)) is not None:
        # How it failed counts more than the data that came with it.
        error.data, message = None, short(f"{message} ({wrong})")
    if isinstance(error, TaskError) and not isinstance(error.exit_code, int):
        error.exit_code = None
    match error:
        case TaskTimedOut():
            return Outcome(Status.TIMED_OUT, message, error.data, error.exit_code)
        case TaskFailed() | TerminalError():
            return Outcome(Status.FAILED, message, error.data, error.exit_code)
        case RetryableError():
            return Outcome(Status.ERROR, message, error.data, error.exit_code, retryable=True)
        case TaskError():
            return Outcome(Status.ERROR, message, error.data, error.exit_code)
        case ImageNotFound():
            return Outcome(Status.FAILED, message)
        case BackendUnavailable() | Gone():
            return Outcome(Status.ERROR, message, retryable=True)
        case _:
            return Outcome(Status.ERROR, short(f"{type(error).__name__}: {error}"), retryable=True)


def of_bad_payload(error: ValidationError) -> Outcome:
    """The outcome of a resource that is not what the driver's annotation says."""
    problems = "; ".join(f"/{'/'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])
    return Outcome(Status.FAILED, short(f"the resource is not what this driver works on: {problems}"))


def where(error: BaseException, below: str) -> str:
    """The place in user code an exception came from, for the run's log: its traceback without the frames down to the
    last one in the file `below`, which called the user's code."""
    told = traceback.TracebackException.from_exception(error)
    link: traceback.TracebackException | None = told
    while link is not None:
        ours = [index for index, frame in enumerate(link.stack) if frame.filename == below]
        del link.stack[: ours[-1] + 1 if ours else 0]
        link = link.__cause__ or link.__context__
    return "".join(told.format()).rstrip()


def _wrong_with(data: object) -> str | None:
    """Why a result's data cannot be kept; None if it can."""
    try:
        size = len(orjson.dumps(data)) if data is not None else 0
    except TypeError as error:
        return f"the result's data is no JSON: {error}"
    return f"the result's data is {size} bytes; at most {MAX_DATA} are kept" if size > MAX_DATA else None
