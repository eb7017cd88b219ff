"""The disk that a backend's containers write to, where it is one of this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from conveyor_runtime.orchestra.base import Backend

__all__ = ["Disk", "OnDisk", "disk_of"]


@runtime_checkable
class OnDisk(Protocol):
    """A backend that tells where on this machine its containers' files lie."""

    @property
    def storage(self) -> Path:
        """A directory on that disk."""


@dataclass(frozen=True)
class Disk:
    """Bytes a disk has, and how many of them are free for the likes of us."""

    total: int
    free: int


def disk_of(backend: Backend) -> Disk | None:
    """The backend's disk as it is now; None where that cannot be told."""
    if not isinstance(backend, OnDisk):
        return None
    try:
        found = os.statvfs(backend.storage)
    except OSError:
        return None
    return Disk(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)
