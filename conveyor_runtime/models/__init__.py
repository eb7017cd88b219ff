"""Wire and state shapes: pydantic, frozen, no I/O.

What stands here is read by other processes, other versions and other SDKs: unknown fields are ignored, new fields get
defaults, and nothing is renamed.
"""

from conveyor_runtime.models.base import (
    NAME_RULE,
    Duration,
    Model,
    Name,
    is_name,
    parse_duration,
    utc_now,
)
from conveyor_runtime.models.fleet import (
    LEASE_SILENCE,
    DriverRecord,
    Instance,
    Meta,
    NodeUse,
    Overtaker,
    Overtakers,
    RateState,
    Use,
)
from conveyor_runtime.models.log import LogLine
from conveyor_runtime.models.message import DriverMessage, DriverResultEvent, PipelineEvent
from conveyor_runtime.models.pipeline import PipelineSpec, Step
from conveyor_runtime.models.resource import MAX_PRIORITY, Entry, Resource, ResourceDefinition, ResourceRecord
from conveyor_runtime.models.result import LONGEST_REQUEUE, MAX_DATA, DriverResult, Status, StepResult, short
from conveyor_runtime.models.run import ENGINE, Cancel, Claim, PlannedStep, RunRecord, StepState, run_made_at
from conveyor_runtime.models.view import Run, RunResource, RunStep

__all__ = [
    "ENGINE",
    "LEASE_SILENCE",
    "LONGEST_REQUEUE",
    "MAX_DATA",
    "MAX_PRIORITY",
    "NAME_RULE",
    "Cancel",
    "Claim",
    "DriverMessage",
    "DriverRecord",
    "DriverResult",
    "DriverResultEvent",
    "Duration",
    "Entry",
    "Instance",
    "LogLine",
    "Meta",
    "Model",
    "Name",
    "NodeUse",
    "Overtaker",
    "Overtakers",
    "PipelineEvent",
    "PipelineSpec",
    "PlannedStep",
    "RateState",
    "Resource",
    "ResourceDefinition",
    "ResourceRecord",
    "Run",
    "RunRecord",
    "RunResource",
    "RunStep",
    "Status",
    "Step",
    "StepResult",
    "StepState",
    "Use",
    "is_name",
    "parse_duration",
    "run_made_at",
    "short",
    "utc_now",
]
