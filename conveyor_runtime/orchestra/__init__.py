"""Where containers run: one contract (`base`), its backends, and what is common to them.

This room knows nothing of resources, runs or the bus: it is told a namespace and an owner, and labels what it makes
with them. Foreign exceptions (Docker's, the operating system's) are translated inside their backend.
"""

from conveyor_runtime.orchestra.base import (
    Backend,
    ExecTag,
    ExitStatus,
    Limits,
    Mount,
    NamespaceInfo,
    Owner,
    PullPolicy,
    Sandbox,
    Stream,
    Task,
    namespace,
)
from conveyor_runtime.orchestra.janitor import reap
from conveyor_runtime.orchestra.registry import Orchestra

__all__ = [
    "Backend",
    "ExecTag",
    "ExitStatus",
    "Limits",
    "Mount",
    "NamespaceInfo",
    "Orchestra",
    "Owner",
    "PullPolicy",
    "Sandbox",
    "Stream",
    "Task",
    "namespace",
    "reap",
]
