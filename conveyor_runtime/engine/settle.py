"""What a resource owes: which run is active, which wait, which are superseded, when a deleted one is gone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial

from conveyor_runtime.engine import planner, runs, steps
from conveyor_runtime.engine.transitions import Transitions
from conveyor_runtime.errors import RevisionConflict
from conveyor_runtime.models import Entry, ResourceRecord, RunRecord, Status
from conveyor_runtime.store import Put, Versioned, keys

log = logging.getLogger(__name__)

#: Event of runs that were asked for by a change of the resource, not by a driver or a timer.
_CHANGES = ("create", "update")


def superseded(record: ResourceRecord, keep_all: bool) -> Iterator[tuple[Entry, str]]:
    """Entries that must end unrun, with the reason."""
    if record.deleting:
        last = record.last_delete
        for entry in record.queue:
            if entry != last:
                yield entry, f"superseded by {last.run_id if last else 'the delete'}"
        return
    for entry in record.queue:
        waits_its_turn = entry.event in _CHANGES and entry.due is None
        if entry.generation < record.generation and not (keep_all and waits_its_turn):
            newer = (it.run_id for it in reversed(record.entries) if it.generation == record.generation)
            yield entry, f"superseded by {next(newer, f'generation {record.generation}')}"


def next_record(record: ResourceRecord, ended: Mapping[str, RunRecord | None], now: datetime) -> ResourceRecord:
    """The record without its ended entries (None = their run is lost), the next due one active; the same object if
    nothing changes."""
    active, queue = record.active, tuple(entry for entry in record.queue if entry.run_id not in ended)
    generations = [run.generation for run in ended.values() if run is not None and run.event != "delete"]
    update: dict[str, object] = {"ended_generation": max(record.ended_generation, *generations, 0)}
    if active is not None and active.run_id in ended:
        run = ended[active.run_id]
        update["last_run"] = active.run_id
        if run is not None and run.status is Status.SUCCEEDED and active.event in _CHANGES:
            update["observed_generation"] = active.generation
        if run is not None:
            update["node"] = _home(record, run)
        active = None
    if active is None:
        active = next((entry for entry in queue if entry.due is None or entry.due <= now), None)
        queue = tuple(entry for entry in queue if entry is not active)
    if active is record.active and queue == record.queue:
        return record
    return record.model_copy(update={**update, "active": active, "queue": queue})


def _home(record: ResourceRecord, run: RunRecord) -> str | None:
    """Where what a run has left of the resource goes on; None = nowhere in particular."""
    stays = [state.stays for state in run.steps.values() if state.stays is not None]
    if stays:
        return stays[-1]
    gone = any(it.node == record.node and it.message.startswith(steps.NODE_GONE) for it in run.steps.values())
    return None if gone or run.status is Status.SUCCEEDED else record.node


def may_requeue(record: ResourceRecord, run: RunRecord) -> bool:
    """Whether the run its driver asked for is made: not for a cancelled run, nor where something newer is owed."""
    if run.requeue_after is None or run.status is Status.CANCELLED:
        return False
    return run.event == "delete" or not (record.deleting or run.generation < record.generation)


class Settler:
    """Brings a resource record in line with the runs it names. Any engine, any time: every step is compare-and-set."""

    def __init__(
        self,
        transitions: Transitions,
        *,
        start: Callable[[str], None],
        cancelled: Callable[[RunRecord], None],
        later: Callable[[str, str, float], None],
    ) -> None:
        self._transitions = transitions
        self._state = transitions.state
        self._start = start
        self._cancelled = cancelled
        self._later = later

    async def settle(self, type_: str, name: str) -> None:
        """Do all that is due. `start(run_id)` is called for a run that became active, `later(type, name, seconds)` for
        one that will."""
        found = self._state.view.resource(type_, name) or await self._state.resource(type_, name)
        while found is not None:
            record = found.record
            ended = await self._end_what_must(record)
            active_run = ended.get(record.active.run_id) if record.active else None
            if active_run is not None and steps.delete_succeeded(record, active_run):
                if await self._remove(found):
                    return
                found = await self._state.resource(type_, name)
                continue
            after = next_record(record, ended, self._transitions.now())
            if after is record:
                self._plan_later(record)
                return
            puts = []
            if active_run is not None and may_requeue(record, active_run):
                # Written with the record that takes this one out: whichever engine does that does both.
                again, due = runs.again(active_run, await self._state.run_input(active_run), self._transitions.now())
                after = runs.owe(after, again, due)
                puts = runs.puts(again)
            try:
                await self._state.commit(*puts, Put(keys.resource(type_, name), after, found.revision))
            except RevisionConflict:
                found = await self._state.resource(type_, name)
                continue
            self._plan_later(after)
            if after.active is not None and after.active != record.active:
                self._start(after.active.run_id)
            return

    async def _end_what_must(self, record: ResourceRecord) -> dict[str, RunRecord | None]:
        """End superseded runs, cancel the active one under a delete; the entries' runs that are terminal, None for one
        that is named but not stored: the resource would wait for it for ever."""
        now = self._transitions.now()
        definition = self._state.view.definition(record.type)
        keep_all = definition is not None and definition.record.queue == "all"
        for entry, reason in superseded(record, keep_all):
            await self._transitions.change(entry.run_id, partial(planner.end_unstarted, reason=reason, now=now))
        if record.deleting and record.active and record.active != record.last_delete:
            why = "by force" if record.active.event == "delete" else "the resource is being deleted"
            run = await self._transitions.change(
                record.active.run_id, lambda run: planner.cancel(run, "delete", why, now)
            )
            if run is not None and not run.status.terminal:
                self._cancelled(run)
        ended: dict[str, RunRecord | None] = {}
        for entry in record.entries:
            found = await self._transitions.find(entry.run_id)
            if found is None and not runs.is_new(entry.run_id, now):
                log.error("run %s of %s/%s is lost: it is not stored", entry.run_id, record.type, record.name)
                ended[entry.run_id] = None
            elif found is not None and found.record.status.terminal:
                ended[entry.run_id] = found.record
        return ended

    async def _remove(self, found: Versioned[ResourceRecord]) -> bool:
        """The deleted resource's record and its earlier versions; False if somebody else wrote meanwhile."""
        record = found.record
        try:
            await self._state.commit(Put(keys.resource(record.type, record.name), None, found.revision))
        except RevisionConflict:
            return False
        await self.forget_versions(record)
        return True

    async def forget_versions(self, record: ResourceRecord) -> None:
        """Remove the earlier versions of a removed resource, all at once. Their keys bear its id, so what a crash
        leaves behind is never shown."""
        if record.revision > 1:
            await self._state.store.purge(f"version.{record.id}.")

    def _plan_later(self, record: ResourceRecord) -> None:
        dues = [entry.due for entry in record.queue if entry.due is not None]
        if record.active is None and dues:
            wait = (min(dues) - self._transitions.now()).total_seconds()
            self._later(record.type, record.name, max(wait, 0.0))
