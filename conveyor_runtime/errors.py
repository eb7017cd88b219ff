"""Every exception of the runtime, one tree.

    ConveyorError
    ├── ConfigError                 the operator's settings cannot work (exit code 2)
    ├── RequestError                the caller's request cannot be served (HTTP 4xx)
    │   ├── InvalidInput            malformed or against its schema; carries JSON pointers (400)
    │   ├── NotFound                (404)
    │   ├── Conflict                exists already, is being deleted, or was changed meanwhile (409)
    │   ├── TooLarge                (413)
    │   └── Unprocessable           well-formed but refers to what does not exist (422)
    ├── TaskError                   what a reconcile may raise
    │   ├── RetryableError          try again with backoff (any other exception counts as this one)
    │   ├── TerminalError           never try again
    │   ├── TaskFailed              the task itself said no: an exit code, a failed test
    │   └── TaskTimedOut            the task exceeded a time limit of its own
    └── InfrastructureError         a part we stand on failed; nothing is said about the task
        ├── BusError                publish, fetch or connect failed
        │   └── BusUnavailable      not connected, or no answer in time: the outcome is unknown
        ├── StoreError
        │   └── RevisionConflict    a compare-and-set lost: somebody else wrote first
        └── BackendError            a container backend failed
            ├── BackendUnavailable  the daemon does not answer (retryable)
            ├── ImageNotFound       the image does not exist or may not be read (terminal)
            └── Gone                what should be there was removed from outside

Foreign exceptions are translated where they enter (nats in `bus`, docker in `orchestra.docker`), with `from`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "BackendError",
    "BackendUnavailable",
    "BusError",
    "BusUnavailable",
    "ConfigError",
    "Conflict",
    "ConveyorError",
    "Gone",
    "ImageNotFound",
    "InfrastructureError",
    "InvalidInput",
    "NotFound",
    "Problem",
    "RequestError",
    "RetryableError",
    "RevisionConflict",
    "StoreError",
    "TaskError",
    "TaskFailed",
    "TaskTimedOut",
    "TerminalError",
    "TooLarge",
    "Unprocessable",
]


class ConveyorError(Exception):
    """Base of everything the runtime raises on purpose."""


class ConfigError(ConveyorError):
    """The settings cannot work; the message says which one and how to mend it."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a document: where (a JSON pointer, `""` = the whole) and why."""

    pointer: str
    detail: str

    def __str__(self) -> str:
        return f"{self.pointer or '/'}: {self.detail}"


class RequestError(ConveyorError):
    """The caller's request cannot be served. `status` is the HTTP status it maps to."""

    status = 400


class InvalidInput(RequestError):
    """Malformed, or against its schema. `problems` says where and why, at least one."""

    status = 400

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class NotFound(RequestError):
    """No such thing."""

    status = 404


class Conflict(RequestError):
    """It exists already, is being deleted, or was changed by somebody else meanwhile."""

    status = 409


class TooLarge(RequestError):
    """The document is larger than the limit it names."""

    status = 413


class Unprocessable(RequestError):
    """Well-formed, but it refers to something that does not exist."""

    status = 422


class TaskError(ConveyorError):
    """What a reconcile may raise to say how it failed. `exit_code` and `data` travel in the result."""

    def __init__(self, message: str, *, exit_code: int | None = None, data: object = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.data = data


class RetryableError(TaskError):
    """Try again with backoff. Any exception that is not a `TaskError` counts as this one."""


class TerminalError(TaskError):
    """Never try again: the input is wrong, or another attempt cannot help."""


class TaskFailed(TaskError):
    """The task itself said no: an exit code, a failed test. Not retried."""


class TaskTimedOut(TaskError):
    """The task exceeded a time limit of its own."""


class InfrastructureError(ConveyorError):
    """A part we stand on failed; nothing is said about the task. Retryable by nature."""


class BusError(InfrastructureError):
    """The bus refused or failed."""


class BusUnavailable(BusError):
    """Not connected, or no answer in time: whether the write happened is unknown."""


class StoreError(InfrastructureError):
    """The state store refused or failed."""


class RevisionConflict(StoreError):
    """A compare-and-set lost: somebody else wrote `key` first."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key} was changed by somebody else")
        self.key = key


class BackendError(InfrastructureError):
    """A container backend failed."""


class BackendUnavailable(BackendError):
    """The backend's daemon or registry does not answer."""


class ImageNotFound(BackendError):
    """The image does not exist, or these credentials may not read it."""


class Gone(BackendError):
    """What should be there was removed from outside."""
