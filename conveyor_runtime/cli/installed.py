"""Which drivers are installed, by their entry points: none is imported, nor is the SDK, to name them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from functools import cache
from glob import escape, glob
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


@cache
def driver_names() -> list[str]:
    """Names of all installed drivers.

    Read from the files that tell them: loading importlib.metadata for it doubled what `--help` takes beyond Typer.
    """
    names = set()
    for folder in dict.fromkeys(sys.path):
        for path in glob(f"{escape(folder or '.')}/*-info/entry_points.txt"):
            with contextlib.suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as file:
                names |= _names_in(file)
    return sorted(names)


def _names_in(lines: Iterable[str]) -> set[str]:
    names, section = set(), ""
    for line in map(str.strip, lines):
        if line.startswith("["):
            section = line
        elif section == f"[{GROUP}]" and "=" in line and not line.startswith("#"):
            names.add(line.partition("=")[0].strip())
    return names


def summary_of(name: str) -> str:
    """What the help says of the subcommand of an installed driver."""
    return f"Run the installed driver {name} until Ctrl-C."
