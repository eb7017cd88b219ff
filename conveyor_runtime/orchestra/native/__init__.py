"""The native backend: a sandbox is a private directory and the processes started in it, on this machine.

It isolates nothing: commands run as the worker's own user and see its files and network. They have limits and can be
halted where the worker may make control groups (`cgroups`). It is for machines without a container engine and for work
that is trusted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conveyor_runtime.orchestra.base import Backend
    from conveyor_runtime.orchestra.native.backend import NativeBackend
    from conveyor_runtime.orchestra.registry import BackendSettings

__all__ = ["NativeBackend", "open_backend"]


async def open_backend(settings: BackendSettings) -> Backend:
    """For the registry."""
    from conveyor_runtime.orchestra.native.backend import NativeBackend

    return NativeBackend(settings.native_root)


def __getattr__(name: str) -> Any:
    # Not loaded with the package: a keeper, which is a process of its own, has no need of it.
    if name == "NativeBackend":
        from conveyor_runtime.orchestra.native.backend import NativeBackend

        return NativeBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
