"""Who is there: driver processes and their nodes, what is registered, which installation this is."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from conveyor_runtime.models.base import Model

#: Seconds a lease may stay unchanged before its process counts as dead.
LEASE_SILENCE = 45.0


class Use(Model):
    """What a run holds of a node, or a node has: thousandths of a CPU, bytes. A node without a size of disk does not
    know it."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0


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


class Overtaker(Model):
    """A dispatch that comes before those of less priority: its numbers, its node (None = any), its message."""

    priority: int
    seq: int
    run_id: str
    step: str
    attempt: int
    takeover: int
    node: str | None = None

    @property
    def numbers(self) -> tuple[str, str, int, int]:
        """What names its attempt and takeover."""
        return (self.run_id, self.step, self.attempt, self.takeover)


class Overtakers(Model):
    """`overtakers.<driver>`: the dispatches of a driver that may be worked on before their turn, the first one first.
    Some may have been begun meanwhile."""

    waiting: tuple[Overtaker, ...] = ()


class Meta(Model):
    """`meta.epoch`: who this installation is; the epoch changes when the store is restored from a backup."""

    installation: str
    epoch: str
    created_at: datetime
    former: tuple[str, ...] = ()
    """The epochs before this one."""
    backup_at: datetime | None = None
    """When the backup was taken that this store was restored from: of what came later it knows nothing."""
