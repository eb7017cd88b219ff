"""Making runs: new ones of a resource as it is, and once more of what an earlier one pinned. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

import uuid_utils

from conveyor_runtime.models import Entry, PlannedStep, Resource, ResourceRecord, RunRecord, Status, run_made_at
from conveyor_runtime.store import Put, keys

#: Bytes of a resource kept in the run record; a larger one lies in a key of its own.
_INLINE = 4096

#: Age from which a run that is named but not stored is lost. Whoever made it wrote it and the record that names it at
#: once; the first may arrive last, tried again after a reconnect or a new leader, and is given up long before this.
_LOST_AGE = timedelta(minutes=1)


def new(
    record: ResourceRecord, event: str, plan: tuple[PlannedStep, ...] | None, *, pipeline: str | None, now: datetime
) -> RunRecord:
    """A run of the resource as it is; `plan` None = a direct run, which is planned when its turn comes."""
    return RunRecord(
        run_id=_new_id(),
        type=record.type,
        name=record.name,
        event=event,
        generation=record.generation,
        status=Status.ACCEPTED,
        pipeline=pipeline,
        resource=record.as_resource(),
        priority=record.priority,
        plan=plan,
        created_at=now,
    )


def again(run: RunRecord, resource: Resource, now: datetime) -> tuple[RunRecord, datetime]:
    """The run that this one's driver asked for, of the same `resource`, and when it is due."""
    due = (run.finished_at or now) + timedelta(seconds=run.requeue_after or 0)
    direct = run.pipeline is None and run.event != "delete"
    once_more = RunRecord(
        run_id=_new_id(),
        type=run.type,
        name=run.name,
        event=run.event,
        generation=run.generation,
        status=Status.ACCEPTED,
        pipeline=run.pipeline,
        resource=resource,
        priority=run.priority,
        plan=None if direct else run.plan,
        created_at=now,
    )
    return once_more, due


def owe(record: ResourceRecord, run: RunRecord | None, due: datetime | None = None) -> ResourceRecord:
    """The record with a run to do: active if it can begin now and nothing else is, else at the end of the queue."""
    if run is None:
        return record
    entry = Entry(run_id=run.run_id, event=run.event, generation=run.generation, due=due)
    if record.active is None and due is None:
        return record.model_copy(update={"active": entry})
    return record.model_copy(update={"queue": (*record.queue, entry)})


def puts(run: RunRecord) -> list[Put]:
    """How a new run is written: its resource in a key of its own if it is large."""
    if run.resource is not None and len(run.resource.encode()) > _INLINE:
        record = run.model_copy(update={"resource": None})
        return [Put(keys.run_input(run.run_id), run.resource, 0), Put(keys.run(run.run_id), record, 0)]
    return [Put(keys.run(run.run_id), run, 0)]


def is_new(run_id: str, now: datetime) -> bool:
    """Whether this run may still be on its way into the store, by the time in its id."""
    made = run_made_at(run_id)
    return made is not None and abs(now - made) < _LOST_AGE


def _new_id() -> str:
    """A UUIDv7: ids sort by the time they were made."""
    return str(uuid_utils.uuid7())
