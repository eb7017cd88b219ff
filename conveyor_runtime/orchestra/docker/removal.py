"""Taking containers away."""

from __future__ import annotations

import asyncio

from conveyor_runtime.errors import BackendError, Gone
from conveyor_runtime.orchestra.docker.client import Conflicting, Engine

__all__ = ["REMOVAL", "remove_container"]

REMOVAL = 30.0
"""Seconds for a removal that somebody else has begun."""


async def remove_container(engine: Engine, container: str) -> None:
    """Kill and remove it with its nameless volumes, and return when it is gone, whoever removed it."""
    try:
        await engine.call(engine.api.remove_container, container, v=True, force=True)
    except Gone:
        return
    except Conflicting:
        await _until_gone(engine, container)


async def _until_gone(engine: Engine, container: str) -> None:
    deadline = asyncio.get_running_loop().time() + REMOVAL
    while asyncio.get_running_loop().time() < deadline:
        try:
            await engine.call(engine.api.inspect_container, container)
        except Gone:
            return
        await asyncio.sleep(0.1)
    raise BackendError(f"container {container[:12]} is still there")
