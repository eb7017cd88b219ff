"""Taking sandboxes and containers away."""

from __future__ import annotations

import asyncio
from pathlib import Path

from conveyor_runtime.errors import BackendError
from conveyor_runtime.orchestra import execs
from conveyor_runtime.orchestra.native import retiring
from conveyor_runtime.orchestra.native.layout import Meta, is_of
from conveyor_runtime.orchestra.native.proc import Target, sweep

__all__ = ["end_targets", "remove_home"]


async def end_targets(targets: list[Target], grace: float) -> None:
    """SIGTERM, `grace` seconds, SIGKILL to all that belongs to the targets; returns when nothing is left."""
    await execs.end(lambda signal: asyncio.to_thread(sweep, targets, signal), grace)


async def remove_home(root: Path, ns: str, name: str, meta: Meta) -> None:
    """Kill what runs in the sandbox or container of which this is known and remove it; another one that bears its name
    by now stays. Raises `BackendError` for what remains."""
    try:
        if not is_of(root / ns / name, meta):
            return
        # Its name is taken away first: whoever looks from now on finds it gone, and not killed.
        place = retiring.retire_one(root, ns, name)
        if place is None:
            return
        if not is_of(place / name, meta):  # made in this very moment
            (place / name).rename(root / ns / name)
            place.rmdir()
            return
        await asyncio.to_thread(retiring.remove_retired, place)
    except OSError as error:
        raise BackendError(f"{ns}.{name}: cannot be removed: {error}") from error
    if place.exists():
        raise BackendError(f"{ns}.{name}: cannot be removed: {place}")
