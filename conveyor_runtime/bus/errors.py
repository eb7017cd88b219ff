"""What the bus adds to the exception tree."""

from __future__ import annotations

from conveyor_runtime.errors import BusError

__all__ = ["ApiError", "PayloadTooLarge"]


class ApiError(BusError):
    """JetStream said no. `code` is its error code (10071, ...), `description` its own words."""

    def __init__(self, action: str, code: int, description: str) -> None:
        super().__init__(f"{action}: {description} ({code})")
        self.code = code
        self.description = description


class PayloadTooLarge(BusError):
    """The message exceeds what the server accepts: no retry can help."""
