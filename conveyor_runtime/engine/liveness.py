"""Which worker processes live. Judged by revisions and our own clock, never by the clock of another machine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from conveyor_runtime.bus import Bus
from conveyor_runtime.errors import InfrastructureError
from conveyor_runtime.kit import identity
from conveyor_runtime.models import ENGINE, LEASE_SILENCE, Instance
from conveyor_runtime.store import Put, State, keys

log = logging.getLogger(__name__)

#: Seconds between two looks at the processes of this machine.
_NEIGHBOUR_PERIOD = 1.0

#: Seconds without a look after which this process was itself stopped, and has seen nothing meanwhile.
_PAUSE = 10.0


class Liveness:
    """Observes the leases. `listen` is told the id of each instance that is found dead, once."""

    def __init__(self, state: State, bus: Bus, clock: Callable[[], float] = time.monotonic) -> None:
        self._state = state
        self._bus = bus
        self._clock = clock
        self._boot_id = identity.boot_id()
        self._pid_namespace = identity.pid_namespace()
        self._seen: dict[str, tuple[int, float]] = {}
        self._looked = self._watching = clock()
        self._told: set[str] = set()
        self._listeners: list[Callable[[str], None]] = []

    def listen(self, listener: Callable[[str], None]) -> None:
        """Be told of dead instances."""
        self._listeners.append(listener)

    def noticed(self, instance_id: str) -> None:
        """A lease changed: renewed, ended, declared gone or removed."""
        found = self._state.view.instance(instance_id)
        if found is None:
            self._seen.pop(instance_id, None)
            self._told.discard(instance_id)
        else:
            self._seen[instance_id] = (found.revision, self._clock())
        if self.is_dead(instance_id):
            self._tell(instance_id)
        else:
            # Back, and its next death is news again.
            self._told.discard(instance_id)

    def is_dead(self, instance_id: str) -> bool:
        """Whether its work may be given to another. `engine` never dies: any engine speaks for it."""
        if instance_id == ENGINE:
            return False
        found = self._state.view.instance(instance_id)
        if found is None or found.record.ended or found.record.gone:
            return True
        since = self.watching_since()
        if since is None:
            return False
        seen = self._seen.setdefault(instance_id, (found.revision, self._clock()))
        return self._clock() - max(seen[1], since) > LEASE_SILENCE

    def watching_since(self) -> float | None:
        """Since when, on our clock, this process has seen every change; None while it does not. What was renewed
        while we were cut off or stopped is still on its way to us."""
        connected = self._bus.connected_since
        if not self._bus.connected or connected is None or self._clock() - self._looked > _PAUSE:
            return None
        return max(connected, self._watching)

    async def run(self) -> None:
        """Look at the neighbours and at silent leases for ever."""
        while True:
            await self.look()
            await asyncio.sleep(_NEIGHBOUR_PERIOD)

    async def look(self) -> None:
        """One look."""
        now = self._clock()
        if now - self._looked > _PAUSE:
            self._watching = now
        self._looked = now
        for found in self._state.view.instances():
            instance = found.record
            if not (instance.ended or instance.gone) and self._is_gone_neighbour(instance):
                await self._declare_gone(instance, found.revision)
            elif self.is_dead(instance.id):
                self._tell(instance.id)

    def _is_gone_neighbour(self, instance: Instance) -> bool:
        """Whether it ran beside us, where pids mean the same, and its process is no more."""
        if not instance.boot_id or (instance.boot_id, instance.pid_namespace) != (self._boot_id, self._pid_namespace):
            return False
        return identity.start_time(instance.pid) != instance.start_time

    async def _declare_gone(self, instance: Instance, revision: int) -> None:
        gone = instance.model_copy(update={"gone": "its process is no more"})
        try:
            await self._state.commit(Put(keys.instance(instance.id), gone, revision))
        except InfrastructureError as error:
            # Renewed or declared by somebody else meanwhile, or the bus is away: the next look tells.
            log.debug("could not declare %s gone: %s", instance.id, error)

    def _tell(self, instance_id: str) -> None:
        if instance_id not in self._told:
            self._told.add(instance_id)
            for listener in self._listeners:
                listener(instance_id)
