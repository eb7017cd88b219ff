"""Names dispatches that come before others of their driver: what `reconcile.overtaking` takes from."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable

from conveyor_runtime.bus import Bus, subjects
from conveyor_runtime.errors import InfrastructureError, RevisionConflict
from conveyor_runtime.models import Overtaker, Overtakers
from conveyor_runtime.store import Put, State, View, keys

log = logging.getLogger(__name__)

#: Dispatches of a driver that are named at a time. The others wait in line, until something else makes room.
MOST = 100


class Ahead:
    """Names dispatches, those of one driver together: each by itself would be refused for all others that meet it."""

    def __init__(self, state: State, bus: Bus) -> None:
        self._state = state
        self._bus = bus
        self._new: defaultdict[str, list[Overtaker]] = defaultdict(list)
        self._one_by_one: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def put(self, driver: str, dispatch: Overtaker) -> None:
        """Let a published dispatch come before those of its driver that have less priority. Where that cannot be done
        now, it waits in line."""
        self._new[driver].append(dispatch)
        async with self._one_by_one[driver]:
            new = self._new.pop(driver, [])
            if not new:
                return  # it was named with others
            try:
                if await self._name(driver, new):
                    self._bus.publish_core(subjects.overtake_hint(driver), b"")
            except InfrastructureError as error:
                log.warning("%d steps with a priority have to wait in line for %s: %s", len(new), driver, error)

    async def _name(self, driver: str, new: list[Overtaker]) -> bool:
        """Add them to those named; False if so many come before them that none is."""
        while True:
            found = await self._state.overtakers(driver)
            known = found.record.waiting if found is not None else ()
            waiting = in_order((*(it for it in known if is_waiting(self._state.view, it)), *new))
            if not set(new).intersection(waiting):
                return False
            put = Put(keys.overtakers(driver), Overtakers(waiting=waiting), found.revision if found is not None else 0)
            try:
                await self._state.commit(put)
            except RevisionConflict:
                continue
            return True


def in_order(dispatches: Iterable[Overtaker]) -> tuple[Overtaker, ...]:
    """The most urgent ones, of equal priority the oldest, each once: what was issued again has a newer message."""
    newest = {it.numbers: it for it in sorted(dispatches, key=lambda it: it.seq)}
    return tuple(sorted(newest.values(), key=lambda it: (-it.priority, it.seq))[:MOST])


def is_waiting(view: View, it: Overtaker) -> bool:
    """Whether nobody has begun it, as far as this process knows. Of what another engine has just made it knows nothing
    yet."""
    run = view.run(it.run_id)
    over = run is not None and not run.record.is_open_at(it.step, it.attempt, it.takeover)
    return not over and view.claim(*it.numbers) is None
