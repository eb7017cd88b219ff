"""What a worker process works with, built in one place and handed to all that need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conveyor_runtime.bus import Bus, Committer
from conveyor_runtime.config import DriverSettings
from conveyor_runtime.orchestra import Orchestra
from conveyor_runtime.reconcile.driver import Driver
from conveyor_runtime.reconcile.invoke import Stop, Threads
from conveyor_runtime.reconcile.lease import Lease
from conveyor_runtime.store import State

if TYPE_CHECKING:  # `client` stands above this room: whoever builds a process hands one in
    from conveyor_runtime.client import Client


@dataclass
class Deps:
    """`stuck` is called with user code that does not end."""

    driver: Driver
    settings: DriverSettings
    installation: str
    bus: Bus
    state: State
    results: Committer
    logs: Committer
    lease: Lease
    executor: Threads
    node: str
    epoch: str = ""
    orchestra: Orchestra | None = None
    client: Callable[[], Client] | None = None
    stuck: Callable[[Stop], None] = lambda why: None
