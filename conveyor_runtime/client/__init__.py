"""The typed client of the HTTP API: what the CLI uses, what users use, what a driver gets as `context.client`."""

from conveyor_runtime.client.client import Client
from conveyor_runtime.client.errors import (
    ClientError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    ServerFaultError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from conveyor_runtime.client.models import (
    Applied,
    Deleted,
    DriverInfo,
    DriverInstance,
    LoggedLine,
    Pipeline,
    PipelineStep,
    ResourceInfo,
)
from conveyor_runtime.models import Run, RunResource, RunStep

__all__ = [
    "Applied",
    "Client",
    "ClientError",
    "ConflictError",
    "Deleted",
    "DriverInfo",
    "DriverInstance",
    "InvalidRequestError",
    "LoggedLine",
    "NotFoundError",
    "Pipeline",
    "PipelineStep",
    "ResourceInfo",
    "Run",
    "RunResource",
    "RunStep",
    "ServerFaultError",
    "UnauthorizedError",
    "UnavailableError",
    "UnreachableError",
]
