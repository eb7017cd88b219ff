"""Runs nobody asked for by a write: of resources whose newest generation, or delete, lost its run, and of those whose
drivers want to see them every now and then."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from conveyor_runtime.engine import runs
from conveyor_runtime.engine.acceptance import Acceptance
from conveyor_runtime.engine.definitions import Definitions
from conveyor_runtime.engine.drafts import DraftChecker
from conveyor_runtime.engine.engine import Engine
from conveyor_runtime.engine.validation import PIPELINE
from conveyor_runtime.errors import InvalidInput, Unprocessable
from conveyor_runtime.models import DriverRecord, PlannedStep, ResourceRecord, RunRecord
from conveyor_runtime.store import Put, Versioned, keys

log = logging.getLogger(__name__)

#: Resources handed to their drivers again in one round, those that have waited longest first: a round must not hold up
#: the sweep it is part of.
_ROUND = 500


class Resync:
    """Part of every sweep. Any number of engines may do it at once: whoever comes second meets a newer record."""

    def __init__(self, engine: Engine) -> None:
        self._state = engine.state
        self._transitions = engine.transitions
        self._engine = engine
        definitions = Definitions(engine.state)
        self._drafts = DraftChecker(engine.state, definitions)
        self._acceptance = Acceptance(engine, definitions)

    async def round(self, resources: Iterable[Versioned[ResourceRecord]]) -> None:
        """Give a run to each of these resources that has lost its own or is due."""
        now = self._transitions.now()
        periods = shortest_periods(self._engine.fleet().drivers)
        due: list[tuple[datetime, Versioned[ResourceRecord]]] = []
        for found in resources:
            record = found.record
            if record.active is not None:
                continue
            if record.deleting:
                if await self._has_lost_its_delete(record):
                    await self._delete_again(found)
            elif has_lost_its_run(record):
                await self._dispatch_again(found)
            elif record.type in periods and not any(entry.event == "resync" for entry in record.queue):
                last = await self._last_run(record)
                seen = (last.finished_at if last is not None else None) or record.updated_at
                if now - seen >= periods[record.type]:
                    due.append((seen, found))
        for _, found in sorted(due, key=lambda pair: pair[0])[:_ROUND]:
            await self._give(found, "resync", None)

    async def _last_run(self, record: ResourceRecord) -> RunRecord | None:
        found = await self._transitions.find(record.last_run) if record.last_run is not None else None
        return found.look() if found is not None else None

    async def _has_lost_its_delete(self, record: ResourceRecord) -> bool:
        """Whether nothing is owed although no delete has ended: one that failed is the last that was owed."""
        last = await self._last_run(record)
        return not record.entries and (last is None or last.event != "delete")

    async def _delete_again(self, found: Versioned[ResourceRecord]) -> None:
        record = found.record
        log.warning("the delete of %s/%s is lost", record.type, record.name)
        await self._give(found, "delete", await self._drafts.cleaners(record, self._engine.fleet()))

    async def _dispatch_again(self, found: Versioned[ResourceRecord]) -> None:
        record = found.record
        try:
            plan = await self._drafts.plan_of(record)
        except (InvalidInput, Unprocessable) as error:
            log.warning("%s/%s has lost its run and cannot have another: %s", record.type, record.name, error)
            return
        log.warning("the run of generation %d of %s/%s is lost", record.generation, record.type, record.name)
        await self._give(found, "update" if record.observed_generation else "create", plan)

    async def _give(self, found: Versioned[ResourceRecord], event: str, plan: tuple[PlannedStep, ...] | None) -> None:
        run = await self._acceptance.new_run(found.record, event, plan)
        if run is None:
            return
        record = runs.owe(found.record, run)
        put = Put(keys.resource(record.type, record.name), record, found.revision)
        if await self._acceptance.write(run, put) is not None:
            self._acceptance.go_on(record, run)


def has_lost_its_run(record: ResourceRecord) -> bool:
    """Whether nothing is owed although no run of the newest generation has ended. Pipelines have runs only where a
    driver listens."""
    owed = record.entries or record.deleting
    had_none = record.type == PIPELINE and record.last_run is None
    return not owed and not had_none and max(record.observed_generation, record.ended_generation) < record.generation


def shortest_periods(drivers: Mapping[str, DriverRecord]) -> dict[str, timedelta]:
    """How long the resources of a type may go unseen: the shortest time that one of its drivers names."""
    periods: dict[str, timedelta] = {}
    for record in drivers.values():
        for type_ in record.types if record.resync_period is not None else ():
            if record.direct and record.takes(type_, "resync"):
                period = timedelta(seconds=record.resync_period or 0)
                periods[type_] = min(period, periods.get(type_, period))
    return periods
