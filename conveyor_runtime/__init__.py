"""Conveyor Runtime: resources in, runs out, nothing lost.

The public names, loaded when first used so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conveyor_runtime.client import Client
    from conveyor_runtime.errors import (
        ConveyorError,
        RetryableError,
        TaskFailed,
        TaskTimedOut,
        TerminalError,
    )
    from conveyor_runtime.models import DriverResult, Resource, ResourceDefinition
    from conveyor_runtime.reconcile import Driver, DriverLogger, DriverManager, RateLimit, RunContext, driver

__version__ = "0.1.0.dev0"

_HOMES = {
    "Client": "client",
    "ConveyorError": "errors",
    "Driver": "reconcile",
    "DriverLogger": "reconcile",
    "DriverManager": "reconcile",
    "DriverResult": "models",
    "RateLimit": "reconcile",
    "Resource": "models",
    "ResourceDefinition": "models",
    "RetryableError": "errors",
    "RunContext": "reconcile",
    "TaskFailed": "errors",
    "TaskTimedOut": "errors",
    "TerminalError": "errors",
    "driver": "reconcile",
}

__all__ = [
    "Client",
    "ConveyorError",
    "Driver",
    "DriverLogger",
    "DriverManager",
    "DriverResult",
    "RateLimit",
    "Resource",
    "ResourceDefinition",
    "RetryableError",
    "RunContext",
    "TaskFailed",
    "TaskTimedOut",
    "TerminalError",
    "driver",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
