"""The records the runtime keeps in its state bucket, one model per kind of key."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from conveyor_runtime.models.base import Model
from conveyor_runtime.models.resource import Resource
from conveyor_runtime.models.result import Status

#: A claim held by the engine itself, so that no worker can start the attempt any more.
ENGINE = "engine"


def run_made_at(run_id: str) -> datetime | None:
    """When the run was made, by the time in its id (a UUIDv7); None where another hand made the id."""
    try:
        made = uuid.UUID(run_id)
    except ValueError:
        return None
    return datetime.fromtimestamp((made.int >> 80) / 1000, UTC) if made.version == 7 else None


class Entry(Model):
    """One run a resource owes: in `active` or in `queue` until the run is terminal."""

    run_id: str
    event: str
    generation: int
    due: datetime | None = None


class ResourceRecord(Model):
    """`resource.<type>.<name>`: desired state and the runs it owes.

    `generation` counts changes of spec or pipeline, `revision` any change (Conveyor's `metadata.version`).
    `observed_generation` is the newest that a run succeeded with, `ended_generation` the newest that a run ended of,
    however it ended.
    """

    id: str
    type: str
    name: str
    pipeline: str | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    spec: Any = None
    generation: int = 1
    revision: int = 1
    observed_generation: int = 0
    ended_generation: int = 0
    created_at: datetime
    updated_at: datetime
    active: Entry | None = None
    queue: tuple[Entry, ...] = ()
    deleting: bool = False
    last_run: str | None = None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every run still owed, the active one first."""
        return ((self.active,) if self.active else ()) + self.queue

    def names(self, run_id: str) -> bool:
        """Whether this run is owed, or the last that was."""
        return self.last_run == run_id or any(entry.run_id == run_id for entry in self.entries)

    def as_resource(self) -> Resource:
        """The resource as clients and drivers see it."""
        return Resource(
            id=self.id,
            name=self.name,
            pipeline=self.pipeline,
            resource=self.type,
            metadata={**self.metadata, "version": str(self.revision)},
            spec=self.spec,
        )


class PlannedStep(Model):
    """A step as the run pinned it. `needs` are the ids of steps that must have ended first."""

    id: str
    name: str = ""
    driver: str
    needs: tuple[str, ...] = ()
    finally_: bool = Field(default=False, alias="finally")
    timeout: float | None = None
    queue_timeout: float | None = None


class StepState(Model):
    """Where a step of a run stands.

    `attempt` is 0 until the step is opened; `takeover` counts hand-overs of this attempt, `deaths` those because the
    worker died; `issue` counts publications of its dispatch, 0 = not yet published because no driver could take it.
    `node` is where the dispatch goes (None = anywhere), `claimed_node` where the latest known claim was. `queued_at` is
    since when a worker is waited for, where that has a limit. `due` is when it goes on (`goes_on_at`), or of a foreign
    driver's step, when its time is over.
    """

    status: Status = Status.PENDING
    attempt: int = 0
    takeover: int = 0
    deaths: int = 0
    issue: int = 0
    issued_at: datetime | None = None
    queued_at: datetime | None = None
    node: str | None = None
    claimed_node: str | None = None
    due: datetime | None = None
    foreign_seq: int | None = None
    message: str = ""
    exit_code: int | None = None
    data: Any = None
    data_key: str | None = None
    instance: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def open(self) -> bool:
        """Whether an attempt of it is under way (or waits for a worker)."""
        return self.attempt > 0 and self.status is Status.PENDING

    @property
    def goes_on_at(self) -> datetime | None:
        """When its next attempt is opened, or the one that killed several workers is dispatched again; None if it waits
        for no time."""
        waits = self.status is Status.AWAITING_RETRY or (self.open and self.issue == 0)
        return self.due if waits else None

    @property
    def reported(self) -> bool:
        """Whether it ended by a result of its driver: without an instance, it was the engine that ended it."""
        return self.status.terminal and self.instance is not None


class Cancel(Model):
    """Who asked for the end of a run, and why."""

    who: str
    why: str
    at: datetime


class RunRecord(Model):
    """`run.<run_id>`: plan, progress and outbox of one run.

    `status` is always written, and before anything a user can fill: the view reads it without decoding the rest.
    `resource` is pinned as of its generation; above 4 KiB it lies in `input.<run_id>` and is None here. `plan` is None
    while a direct run waits for the first driver that takes its type.
    """

    run_id: str
    type: str
    name: str
    event: str
    generation: int
    status: Status
    reason: str = ""
    pipeline: str | None = None
    resource: Resource | None = None
    plan: tuple[PlannedStep, ...] | None = None
    steps: dict[str, StepState] = Field(default_factory=dict)
    cancel: Cancel | None = None
    requeue_after: float | None = None
    created_at: datetime
    finished_at: datetime | None = None


class Claim(Model):
    """`claim.<run>.<step>.<attempt>.<takeover>`: who works on it.

    `instance` is `engine` where the engine ended it. `given_up` and `timed_out` are written beside the instance by a
    worker that stops without a result.
    """

    instance: str
    node: str | None = None
    at: datetime
    given_up: bool = False
    timed_out: bool = False
    why: str = ""


#: Seconds a lease may stay unchanged before its process counts as dead.
LEASE_SILENCE = 45.0


class Use(Model):
    """What a run holds of a node, or a node has: thousandths of a CPU, bytes."""

    cpu_milli: int = 0
    memory_bytes: int = 0


class NodeUse(Model):
    """`node.<node>`: what the runs that are on a node hold of it, by run id; ended ones may be among them."""

    runs: dict[str, Use] = Field(default_factory=dict)


class Instance(Model):
    """`instance.<id>`: the lease of one driver process, rewritten every 5 s. `has` is what its machine has."""

    id: str
    driver: str
    nodes: tuple[str, ...] = ()
    host: str = ""
    boot_id: str = ""
    pid_namespace: str = ""
    pid: int = 0
    start_time: int = 0
    slots: int = 1
    has: Use = Use()
    started_at: datetime
    renewed_at: datetime
    ended: bool = False
    gone: str = ""


class DriverRecord(Model):
    """`driver.<name>`: what a driver serves. `nodes` are those that have ever had an instance of a sandbox driver.

    `resync_period` is how many seconds its resources may go unseen; None = for ever. `max_concurrent` is how many runs
    all its processes together work on at once; None = as many as they have slots. `rate_limit` says how often one may
    begin, `uses` whether a run waits for room on its node.
    """

    name: str
    types: tuple[str, ...]
    events: tuple[str, ...] = ("create", "update")
    sdk: str = "conveyor-runtime"
    sandbox: bool = False
    direct: bool = True
    nodes: tuple[str, ...] = ()
    resync_period: float | None = None
    max_concurrent: int | None = None
    rate_limit: str = ""
    uses: bool = False

    @property
    def foreign(self) -> bool:
        """Whether it is built on Conveyor's own SDK: it acks before it works and sends no heartbeat."""
        return self.sdk == "foreign"

    def takes(self, type_: str, event: str) -> bool:
        """Whether it asked for `event` of resources of this type."""
        return type_ in self.types and ("*" in self.events or event in self.events)


class RateState(Model):
    """`rate.<driver>`: when the token bucket of its rate limit would be full again."""

    full_at: datetime


class Meta(Model):
    """`meta.epoch`: who this installation is; the epoch changes when the store is restored from a backup."""

    installation: str
    epoch: str
    created_at: datetime
    backup_at: datetime | None = None
    """When the backup was taken that this store was restored from: of what came later it knows nothing."""
