"""Forgets runs that ended long ago: their records, claims, inputs, data and logs, never those a resource names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice

from conveyor_runtime.bus import Bus
from conveyor_runtime.engine.transitions import Transitions
from conveyor_runtime.errors import BusUnavailable, InfrastructureError, RevisionConflict
from conveyor_runtime.models import RunRecord, run_made_at
from conveyor_runtime.store import LogStore, Put, Versioned, keys

log = logging.getLogger(__name__)

#: No run is purged sooner after its end: somebody may still be reading its log, and a late dispatch of it is told
#: by its record that it is over.
AT_LEAST = timedelta(hours=1)

#: A run that ended this long ago is purged.
KEEP_FOR = timedelta(days=30)

#: Runs beyond this many, the newest counted first, are purged as soon as they may.
KEEP_MOST = 100_000

#: Runs purged in one round, and how many of them at once. Rounds follow each other while there is something due.
_ROUND = 1000
_AT_ONCE = 8

#: Records removed in one commit: a batch has a limit, and a run that was taken over often has many claims.
_MOST_TOGETHER = 100

#: Seconds between two looks for something due.
_PERIOD = 60.0


class Purge:
    """Any number of engines may do it at once."""

    def __init__(self, transitions: Transitions, bus: Bus) -> None:
        self._transitions = transitions
        self._state = transitions.state
        self._logs = LogStore(bus)

    async def run(self) -> None:
        """Keep purging what is due."""
        while True:
            done = 0
            try:
                done = await self.round()
            except Exception as error:  # noqa: BLE001 - old runs can wait, and must not end the control plane
                log.warning("purging old runs stopped half-way and goes on in a minute: %s", error)
            if not done:
                await asyncio.sleep(_PERIOD)

    async def round(self) -> int:
        """Purge what is due, a bounded number; how many runs are gone. What one of them fails at stops no other."""
        done, due = 0, islice(self._due(), _ROUND)
        while some := list(islice(due, _AT_ONCE)):
            done += sum(await asyncio.gather(*map(self._purge_apart, some)))
        if done:
            log.info("%d old runs are purged", done)
        return done

    async def _purge_apart(self, found: Versioned[RunRecord]) -> bool:
        try:
            return await self._purge(found)
        except BusUnavailable:
            raise
        except InfrastructureError as error:
            log.warning("run %s is not purged: %s", found.record.run_id, error)
            return False

    def _due(self) -> Iterator[Versioned[RunRecord]]:
        """Runs that may be purged now, oldest first."""
        now = self._transitions.now()
        oldest_first = self._state.view.run_ids()[::-1]
        too_many = len(oldest_first) - KEEP_MOST
        named: set[str] | None = None
        for index, run_id in enumerate(oldest_first):
            if index >= too_many and (run_made_at(run_id) or now) > now - KEEP_FOR:
                # Ids sort by the time they were made, so all that follow are younger.
                return
            found = self._state.view.run(run_id)
            ended = found.look().finished_at if found is not None and run_id not in self._state.view.live_runs else None
            if found is None or ended is None or ended > now - (AT_LEAST if index < too_many else KEEP_FOR):
                continue
            named = self._named() if named is None else named
            if run_id not in named:
                yield found

    def _named(self) -> set[str]:
        records = [found.record for found in self._state.view.resources()]
        return {entry.run_id for record in records for entry in record.entries} | {
            record.last_run for record in records if record.last_run is not None
        }

    async def _purge(self, found: Versioned[RunRecord]) -> bool:
        """Remove the run, its own record last, so that a crash on the way leaves it to be found again."""
        run_id = found.record.run_id
        await self._logs.forget(run_id)
        await self._state.store.purge(f"data.{run_id}.")
        claims = [keys.claim(run_id, *numbers) for numbers, _ in self._state.view.claims_of(run_id)]
        forgotten = [Put(key, None) for key in (*claims, keys.run_input(run_id))]
        while len(forgotten) > _MOST_TOGETHER:
            await self._state.commit(*forgotten[:_MOST_TOGETHER])
            del forgotten[:_MOST_TOGETHER]
        try:
            await self._state.commit(*forgotten, Put(keys.run(run_id), None, found.revision))
        except RevisionConflict:
            return False
        return True
