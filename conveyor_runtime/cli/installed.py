"""Which drivers are installed, by their entry points: none is imported, nor is the SDK, to name them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["driver_names", "installed", "summary_of"]

#: The loader's own, repeated so that naming the drivers does not load the whole SDK; a test compares them.
GROUP = "conveyor.drivers"


@cache  # looking through all installed packages takes a while
def installed() -> Iterable[EntryPoint]:
    """Entry points of all installed drivers."""
    from importlib.metadata import entry_points

    return entry_points(group=GROUP)


def driver_names() -> list[str]:
    """Names of all installed drivers."""
    return sorted(point.name for point in installed())


def summary_of(name: str) -> str:
    """What the help says of the subcommand of an installed driver."""
    return f"Run the installed driver {name} until Ctrl-C."
