"""Runs as the API answers them and the client returns them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from conveyor_runtime.models.base import Model
from conveyor_runtime.models.result import Status


class RunStep(Model):
    """One step of a run. `data` is what its driver reported (lists leave it out), `instance` the process that works or
    worked on it."""

    id: str
    name: str = ""
    driver: str = ""
    status: Status
    attempt: int = 0
    message: str = ""
    exit_code: int | None = None
    node: str | None = None
    instance: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    data: Any = None
    finally_: bool = Field(default=False, alias="finally")


class RunResource(Model):
    """Which resource a run is of, as of which generation."""

    resource: str
    name: str
    generation: int = 0


class Run(Model):
    """A run. `reason` says why it waits or why it ended as it did."""

    run_id: str
    status: Status
    reason: str = ""
    event: str = ""
    resource: RunResource
    pipeline: str | None = None
    priority: int = 0
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    steps: tuple[RunStep, ...] = ()
