"""What a process finds in its surroundings, made by the world: time, ids, pids, pullers, and who reads its log."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid

import pytest
import uuid_utils

from conveyor_runtime.engine.liveness import Liveness
from conveyor_runtime.engine.nodes import Nodes
from conveyor_runtime.errors import InfrastructureError, RequestError
from conveyor_runtime.kit import identity
from conveyor_runtime.kit.identity import ProcessIdentity
from conveyor_runtime.reconcile import claims, deliveries, manager
from conveyor_runtime.reconcile.lease import Lease
from conveyor_runtime.reconcile.registration import Registration
from tests.model.gates import GatedPuller
from tests.model.loop import Clock


class StandIns:
    """In place from its making until `undo`. What a process reads the bus for, for its own sake, stays out."""

    def __init__(self, clock: Clock, faults: list[str]) -> None:
        self._clock = clock
        self._count = 0
        self._alive: dict[int, int] = {}
        self._patch = patch = pytest.MonkeyPatch()
        for kind in (Liveness, Lease, Nodes):
            defaults = (clock.monotonic if it is time.monotonic else it for it in kind.__init__.__defaults__ or ())
            patch.setattr(kind.__init__, "__defaults__", tuple(defaults))
        patch.setattr(claims, "utc_now", clock.utc)
        patch.setattr(uuid_utils, "uuid7", self._new_id)
        patch.setattr(uuid_utils, "uuid4", self._new_id)
        patch.setattr(identity, "boot_id", lambda: "boot")
        patch.setattr(identity, "pid_namespace", lambda: "pids")
        patch.setattr(identity, "start_time", self._alive.get)
        patch.setattr(ProcessIdentity, "own", classmethod(lambda cls: self._identity()))
        patch.setattr(deliveries, "Puller", GatedPuller)
        for name in ("guard_streams", "watch_epoch"):
            patch.setattr(manager, name, _for_ever)
        patch.setattr(Registration, "register", _at_once)
        self._log = _Watch(faults)
        self._logger = logging.getLogger("conveyor_runtime")
        self._logger.addHandler(self._log)
        patch.setattr(self._logger, "propagate", False)

    def died(self, pid: int) -> None:
        """There is no such process any more."""
        self._alive.pop(pid, None)

    def undo(self) -> None:
        """As it was."""
        self._logger.removeHandler(self._log)
        self._patch.undo()

    def _new_id(self) -> uuid.UUID:
        """A UUIDv7 that a second run of the same steps would make again."""
        self._count += 1
        made = int(self._clock.utc().timestamp() * 1000)
        return uuid.UUID(int=made << 80 | 7 << 76 | 2 << 62 | self._count)

    def _identity(self) -> ProcessIdentity:
        self._count += 1
        self._alive[self._count] = self._count
        # Every other process is on a machine of its own, where nobody sees it die.
        boot = "boot" if self._count % 2 else f"elsewhere-{self._count}"
        return ProcessIdentity("host", boot, "pids", self._count, self._count)


async def _for_ever(*arguments: object) -> None:
    await asyncio.Event().wait()


async def _at_once(self: object) -> None:
    """The records and consumers of drivers are there from the start."""


class _Watch(logging.Handler):
    """What the runtime logs of a failure that none of its parts foresees."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        arguments = record.args if isinstance(record.args, tuple) else ()
        error = record.exc_info[1] if record.exc_info else next((it for it in arguments if _is_error(it)), None)
        if error is not None and not isinstance(error, InfrastructureError | RequestError):
            self._faults.append(f"{record.getMessage()}: {error!r}")


def _is_error(it: object) -> bool:
    return isinstance(it, Exception)
