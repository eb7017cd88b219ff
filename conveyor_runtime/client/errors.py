"""What can go wrong between a client and the API.

ClientError
├── UnreachableError        nobody answered; whether a write happened is said in the text
├── InvalidRequestError     malformed, against its schema, too large, or naming what does not exist (400, 413, 422)
├── UnauthorizedError       the token is missing or wrong (401, 403)
├── NotFoundError           (404)
├── ConflictError           exists already, or is being deleted (409)
├── UnavailableError        the server has no bus, starts or drains (503)
└── ServerFaultError        the server failed in a way it did not expect, or is no Conveyor API at all
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from conveyor_runtime.errors import ConveyorError, Problem


class ClientError(ConveyorError):
    """A call did not succeed. `status` is the HTTP status, None without an answer; `problems` say where and why."""

    def __init__(self, message: str, *, status: int | None = None, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.problems = tuple(problems)


class UnreachableError(ClientError):
    """Nobody answered at the server's address."""


class InvalidRequestError(ClientError):
    """The server will not take the document as it is."""


class UnauthorizedError(ClientError):
    """The token is missing or wrong."""


class NotFoundError(ClientError):
    """No such thing."""


class ConflictError(ClientError):
    """It exists already, is being deleted, or was changed meanwhile."""


class UnavailableError(ClientError):
    """The server cannot serve now: it starts, drains, or has lost its bus."""


class ServerFaultError(ClientError):
    """The server failed, or what answers is no Conveyor API."""


_BY_STATUS: dict[int, type[ClientError]] = {
    401: UnauthorizedError,
    403: UnauthorizedError,
    404: NotFoundError,
    409: ConflictError,
    503: UnavailableError,
}


def error_class(status: int) -> type[ClientError]:
    """The class of an answer's status."""
    return _BY_STATUS.get(status, ServerFaultError if status >= 500 or status < 400 else InvalidRequestError)


def not_understood(error: ValidationError) -> ServerFaultError:
    """What to raise for an answer that is not what the API of this version answers."""
    return ServerFaultError(f"the answer is not what this version understands: {error}")
