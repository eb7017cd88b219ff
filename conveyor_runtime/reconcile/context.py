"""What a reconcile may know about the run it serves, beyond its payload."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from conveyor_runtime.config import DriverSettings
from conveyor_runtime.errors import RetryableError
from conveyor_runtime.orchestra import Orchestra

if TYPE_CHECKING:  # `client` stands above this room: whoever builds a process hands one in
    from conveyor_runtime.client import Client


@dataclass
class RunContext:
    """One attempt of one step. `deadline` is seconds on `time.monotonic()`, None = no timeout.

    Async code is stopped by cancellation; sync code asks `cancelled` (or waits on it) and returns soon. `abandoned` is
    set before that where another worker may have gone on with this attempt: what outlives this process and that one
    can find is then that one's, and must be left as it is.
    """

    run_id: str
    step: str
    attempt: int
    takeover: int
    driver: str
    event: str
    node: str
    installation: str
    settings: DriverSettings
    epoch: str = ""
    deadline: float | None = None
    client_: Callable[[], Client] | None = None
    orchestra_: Orchestra | None = None
    lease_held: Callable[[], bool] = lambda: True
    abandoned: bool = False

    @cached_property
    def cancelled(self) -> threading.Event:
        """Set when this attempt must end."""
        return threading.Event()

    @property
    def client(self) -> Client | None:
        """Of the HTTP API; None where this process was not told of one."""
        return self.client_() if self.client_ is not None else None

    @property
    def orchestra(self) -> Orchestra:
        """The container backends of this process; only drivers with `sandbox=True` have them."""
        if self.orchestra_ is None:
            raise RuntimeError(f"driver {self.driver} has no backends: declare it with sandbox=True")
        return self.orchestra_

    def ensure_current(self) -> None:
        """Call right before each side effect.

        Raises RetryableError if this process can no longer prove that the work is its own: another worker may have it.
        """
        if self.cancelled.is_set() or not self.lease_held():
            raise RetryableError("this worker lost its lease; another one continues")
