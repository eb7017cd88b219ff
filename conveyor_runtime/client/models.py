"""What the API answers, as the client returns it. Fields a newer server adds are ignored."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from conveyor_runtime.models import DriverRecord, LogLine, Model, Resource


class Applied(Model):
    """What became of a write. `run_id` is empty when no run was needed."""

    name: str
    run_id: str = Field(default="", alias="runid")
    version: str = ""
    message: str = ""
    created: bool = False
    changed: bool = True


class Deleted(Model):
    """What became of a delete: `gone`, or under way in the run `run_id`."""

    name: str = ""
    run_id: str = Field(default="", alias="runid")
    gone: bool = False


class QueuedRun(Model):
    """A run that waits for the active one of its resource."""

    run_id: str
    event: str
    generation: int
    due: datetime | None = None


class ResourceInfo(Resource[Any]):
    """A resource and the runs it owes. `run_id` is the run an update led to, empty when none was needed."""

    priority: int = 0
    generation: int = 0
    observed_generation: int = 0
    active_run: str | None = None
    last_run: str | None = None
    queue: tuple[QueuedRun, ...] = ()
    deleting: bool = False
    created_at: datetime | None = None
    updated_at: datetime | None = None
    run_id: str = Field(default="", alias="runid")


class PipelineStep(Model):
    """A step of a pipeline."""

    id: str = ""
    name: str = ""
    driver: str
    timeout: float | None = None
    queue_timeout: float | None = None


class Pipeline(Model):
    """A pipeline. `version` is the author's own; `revision` counts its changes; `warnings` come with a write."""

    name: str
    description: str = ""
    version: str = ""
    resource: str
    steps: tuple[PipelineStep, ...] = ()
    finally_: tuple[PipelineStep, ...] = Field(default=(), alias="finally")
    metadata: dict[str, Any] | None = None
    revision: int = 0
    deleting: bool = False
    warnings: tuple[str, ...] = Field(default=(), exclude_if=lambda value: not value)


class LoggedLine(LogLine):
    """A log line and its `id`, from which a follower can go on."""

    id: int = 0


class DriverInstance(Model):
    """A living process of a driver."""

    id: str
    nodes: tuple[str, ...] = ()
    host: str = ""
    pid: int = 0
    slots: int = 1
    started_at: datetime | None = None
    renewed_at: datetime | None = None


class DriverInfo(DriverRecord):
    """A driver and its processes that live now."""

    instances: tuple[DriverInstance, ...] = ()
