"""The bodies of requests and answers about resources, pipelines and drivers; those of runs are in `models.view`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from conveyor_runtime.models import MAX_PRIORITY, DriverRecord, LogLine, Model, PipelineSpec, ResourceDefinition


def _absent(value: object) -> bool:
    return value is None or value == []


class ResourceDraft(Model):
    """A resource as a client writes it; what the server adds when it shows one is taken no notice of. Runs of a higher
    `priority` are begun before others that wait for the same driver."""

    name: str = ""
    resource: str = ""
    spec: Any = None
    pipeline: str | None = None
    metadata: dict[str, Any] | None = None
    priority: int = Field(default=0, ge=0, le=MAX_PRIORITY, strict=True)


class PipelineDraft(PipelineSpec):
    """A pipeline as a client writes it."""

    name: str = ""


class CancelRequest(Model):
    """Why a run is asked to end."""

    reason: str = Field(default="", max_length=1000)


class LogDraft(LogLine):
    """A log line as a client writes it, `runid` at least."""


class Written(BaseModel):
    """What became of a POST of a resource. `runid` is empty when no run was needed."""

    name: str
    runid: str
    message: str
    version: str


class Applied(Written):
    """What became of an apply."""

    changed: bool


class Deleting(BaseModel):
    """A resource whose drivers still clean up, in the run named."""

    name: str
    runid: str
    message: str


class QueueEntry(BaseModel):
    """A run that waits for the active one of its resource."""

    run_id: str
    event: str
    generation: int
    due: datetime | None = None


class ResourceView(BaseModel):
    """A resource. `metadata` holds its version and, save in lists, what drivers reported in its active or last run."""

    id: str
    name: str
    pipeline: str | None = Field(default=None, exclude_if=_absent)
    resource: str
    metadata: dict[str, str]
    spec: Any
    priority: int
    generation: int
    observed_generation: int
    active_run: str | None
    last_run: str | None
    queue: list[QueueEntry]
    deleting: bool
    created_at: datetime
    updated_at: datetime


class UpdatedResource(ResourceView):
    """A resource after a PUT. `runid` is empty when no run was needed."""

    runid: str


class OldResource(BaseModel):
    """A resource as it was at an earlier revision."""

    id: str
    name: str
    pipeline: str | None = Field(default=None, exclude_if=_absent)
    resource: str
    metadata: dict[str, str]
    spec: Any


class DefinitionView(ResourceDefinition):
    """A resource definition."""

    pipeline: str | None = Field(default=None, exclude_if=_absent)


class StepShape(BaseModel):
    """A step of a pipeline."""

    model_config = ConfigDict(extra="allow")

    id: str
    name: str
    driver: str


class PipelineView(BaseModel):
    """A pipeline. `version` is the author's own; `revision` counts its changes."""

    model_config = ConfigDict(populate_by_name=True)

    name: str
    description: str
    version: str
    resource: str
    steps: list[StepShape]
    finally_: list[StepShape] | None = Field(default=None, alias="finally", exclude_if=_absent)
    metadata: dict[str, Any] | None
    revision: int
    deleting: bool


class WrittenPipeline(PipelineView):
    """A pipeline after a write. `runid` is empty unless a driver listens to pipelines; `warnings` are for authors."""

    runid: str
    warnings: list[str] = Field(default=[], exclude_if=_absent)


class InstanceView(BaseModel):
    """A living process of a driver."""

    id: str
    nodes: tuple[str, ...]
    host: str
    pid: int
    slots: int
    started_at: datetime
    renewed_at: datetime


class DriverView(DriverRecord):
    """A driver, and its processes that live now (of a foreign driver none is known)."""

    instances: list[InstanceView]
