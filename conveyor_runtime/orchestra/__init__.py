"""Where containers run: one contract, its backends, and what is common to them.

The contract is in `base` (what every backend has), `capabilities` (what some have), `task` (what goes in) and `status`
(what comes out); `checks` is what a backend refuses a task with. This room knows nothing of resources, runs or the bus:
it is told a namespace and an owner, and labels what it makes with them. Foreign exceptions (Docker's, the operating
system's) are translated inside their backend.

The registry, and with it the settings, is loaded when first used: a keeper of native containers has no need of them.
"""

from typing import TYPE_CHECKING, Any

from conveyor_runtime.orchestra.base import Backend, Container, Prepared, Progress, Volume
from conveyor_runtime.orchestra.capabilities import (
    Freezable,
    KeepsWarm,
    Measured,
    Sandbox,
    Sandboxes,
    VolumeCopy,
    sandboxes_of,
)
from conveyor_runtime.orchestra.checks import (
    Wish,
    check_host_mounts,
    check_sandbox,
    check_task,
    mount_path,
    refuse,
    wishes,
)
from conveyor_runtime.orchestra.janitor import reap
from conveyor_runtime.orchestra.names import check_task_id, namespace, run_of
from conveyor_runtime.orchestra.status import (
    ContainerStatus,
    ExitStatus,
    NamespaceInfo,
    OnOutput,
    OnStat,
    Reason,
    Stat,
    Status,
    Stream,
)
from conveyor_runtime.orchestra.task import (
    ExecTag,
    HostMount,
    Limits,
    Mount,
    Owner,
    Port,
    PullPolicy,
    RestartPolicy,
    Stdin,
    Task,
    Tmpfs,
    Ulimit,
)

if TYPE_CHECKING:
    from conveyor_runtime.orchestra.registry import BackendSettings, Orchestra

__all__ = [
    "Backend",
    "BackendSettings",
    "Container",
    "ContainerStatus",
    "ExecTag",
    "ExitStatus",
    "Freezable",
    "HostMount",
    "KeepsWarm",
    "Limits",
    "Measured",
    "Mount",
    "NamespaceInfo",
    "OnOutput",
    "OnStat",
    "Orchestra",
    "Owner",
    "Port",
    "Prepared",
    "Progress",
    "PullPolicy",
    "Reason",
    "RestartPolicy",
    "Sandbox",
    "Sandboxes",
    "Stat",
    "Status",
    "Stdin",
    "Stream",
    "Task",
    "Tmpfs",
    "Ulimit",
    "Volume",
    "VolumeCopy",
    "Wish",
    "check_host_mounts",
    "check_sandbox",
    "check_task",
    "check_task_id",
    "mount_path",
    "namespace",
    "reap",
    "refuse",
    "run_of",
    "sandboxes_of",
    "wishes",
]


def __getattr__(name: str) -> Any:
    if name in ("BackendSettings", "Orchestra"):
        from conveyor_runtime.orchestra import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
