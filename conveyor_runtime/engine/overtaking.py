"""Names dispatches that come before others of their driver: what `reconcile.overtaking` takes from."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from conveyor_runtime.bus import Bus, subjects
from conveyor_runtime.errors import InfrastructureError, RevisionConflict
from conveyor_runtime.models import Overtaker, Overtakers
from conveyor_runtime.store import Put, State, View, keys

log = logging.getLogger(__name__)

#: Dispatches of a driver that are named at a time. The others wait in line, until something else makes room.
MOST = 100


async def put_ahead(state: State, bus: Bus, driver: str, dispatch: Overtaker) -> None:
    """Let a published dispatch come before those of its driver that have less priority. Where that cannot be done now,
    it waits in line."""
    try:
        if await _name(state, driver, dispatch):
            bus.publish_core(subjects.overtake_hint(driver), b"")
    except InfrastructureError as error:
        log.warning("step %s of run %s has to wait in line: %s", dispatch.step, dispatch.run_id, error)


async def _name(state: State, driver: str, dispatch: Overtaker) -> bool:
    """Add it to those named; False if so many come before it that it is not."""
    while True:
        found = await state.overtakers(driver)
        known = found.record.waiting if found is not None else ()
        waiting = in_order((*(it for it in known if is_waiting(state.view, it)), dispatch))
        if dispatch not in waiting:
            return False
        put = Put(keys.overtakers(driver), Overtakers(waiting=waiting), found.revision if found is not None else 0)
        try:
            await state.commit(put)
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
