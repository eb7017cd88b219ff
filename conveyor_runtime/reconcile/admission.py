"""What a node can hold: runs that say what they use are let onto it while there is room, counted over all processes.

One key per node says which runs have what there; it is changed by compare-and-set, before the claim. A run has it until
it has ended: whoever finds no room looks which have, so nothing a crash leaves behind counts for longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import timedelta

from pydantic import ValidationError

from conveyor_runtime.config import DriverSettings
from conveyor_runtime.errors import RevisionConflict
from conveyor_runtime.models import LEASE_SILENCE, NodeUse, Status, Use, utc_now
from conveyor_runtime.reconcile import outcome
from conveyor_runtime.reconcile.driver import Driver
from conveyor_runtime.reconcile.outcome import Outcome
from conveyor_runtime.reconcile.work import Work, payload_of
from conveyor_runtime.store import Put, State, keys

#: A lease this old may be of a process that is no more.
_STALE = timedelta(seconds=LEASE_SILENCE)

#: Seconds until a dispatch that the node has no room for is looked at again, and how many are looked at in a second
#: where more wait than that allows.
FULL_RETRY = 2.0
_LOOKS_PER_SECOND = 100

#: Events that begin no work of the size the resource asks for: they look after what is there, or remove it.
_AT_ONCE = ("delete", "resync")


class Admission:
    """Lets runs onto the nodes of this process, for a driver whose `uses` tells what they hold there.

    `has` is what the machine has, `free_disk` tells how many bytes are left on a node's disk (None = unknown): others
    write there, too.
    """

    def __init__(
        self, driver: Driver, settings: DriverSettings, state: State, has: Use, free_disk: Callable[[str], int | None]
    ) -> None:
        self._driver = driver
        self._defaults = settings.defaults
        self._state = state
        self._has = has
        self._free_disk = free_disk
        self._refused = 0
        self._one_by_one = asyncio.Lock()

    async def admit(self, work: Work, node: str) -> Outcome | bool:
        """Whether there is room on the node now, which the run then has; how the step ends if there never is."""
        if work.message.event in _AT_ONCE:
            return True
        try:
            wanted = self._wanted(work)
        except ValidationError:
            return True  # what is wrong with the payload is said when it is reconciled
        except Exception as error:  # noqa: BLE001
            # `uses` is user code: whatever it raises is said in the result, or its dispatch comes back for ever.
            return outcome.of_exception(error)
        if wanted == Use():
            return True
        if not _fit([wanted], self._has) and not await self._fits_elsewhere(wanted):
            return Outcome(Status.ERROR, f"it asks for {_said(wanted)}; no node has more than {_said(self._has)}")
        room = self._room(node) if wanted.disk_bytes else self._has
        async with self._one_by_one:  # of this process: each would be refused for all the others
            return await self._take(work.run_id, wanted, node, room)

    async def _take(self, run_id: str, wanted: Use, node: str, room: Use) -> bool:
        while True:
            found = await self._state.node_use(node)
            runs = dict(found.record.runs) if found is not None else {}
            if run_id in runs:
                return True
            if not _fit([*runs.values(), wanted], room):
                runs = {other: use for other, use in runs.items() if not await self._has_ended(other)}
                if not _fit([*runs.values(), wanted], room):
                    return False
            runs[run_id] = wanted
            try:
                await self._state.commit(Put(keys.node(node), NodeUse(runs=runs), found.revision if found else 0))
            except RevisionConflict:
                continue
            return True

    def look_again_in(self) -> float:
        """Seconds until a delivery that found no room is to be looked at again: the more wait, the longer."""
        self._refused += 1
        seconds = max(FULL_RETRY, self._refused / _LOOKS_PER_SECOND)
        asyncio.get_running_loop().call_later(seconds, self._looked_at)
        return seconds

    def _looked_at(self) -> None:
        self._refused -= 1

    def _wanted(self, work: Work) -> Use:
        assert self._driver.uses is not None
        limits = self._driver.uses(payload_of(work, self._driver, self._defaults))
        return Use(cpu_milli=limits.cpu_milli, memory_bytes=limits.memory_bytes, disk_bytes=limits.disk_bytes)

    def _room(self, node: str) -> Use:
        """What the node has for all its runs. What they have written is counted twice, as theirs and as not free: how
        much it is nobody knows, and too little is safe."""
        free = self._free_disk(node)
        return self._has if free is None else self._has.model_copy(update={"disk_bytes": max(free, 1)})

    async def _has_ended(self, run_id: str) -> bool:
        found = await self._state.run(run_id)
        return found is None or found.record.status.terminal

    async def _fits_elsewhere(self, wanted: Use) -> bool:
        """Whether another process of this driver lives where it would fit."""
        return any(
            it.driver == self._driver.name
            and not (it.ended or it.gone)
            and utc_now() - it.renewed_at < _STALE
            and _fit([wanted], it.has)
            for it in await self._state.instances()
        )


def _fit(uses: Iterable[Use], has: Use) -> bool:
    every = list(uses)
    return (
        sum(use.cpu_milli for use in every) <= has.cpu_milli
        and sum(use.memory_bytes for use in every) <= has.memory_bytes
        and (not has.disk_bytes or sum(use.disk_bytes for use in every) <= has.disk_bytes)
    )


def _said(use: Use) -> str:
    parts = [f"{use.cpu_milli / 1000:g} CPUs"] * bool(use.cpu_milli)
    parts += [f"{use.memory_bytes / 2**20:.0f} MiB of memory"] * bool(use.memory_bytes)
    parts += [f"{use.disk_bytes / 2**30:.1f} GiB of disk"] * bool(use.disk_bytes)
    return ", ".join(parts)
