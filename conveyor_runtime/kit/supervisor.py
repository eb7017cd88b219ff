"""Root tasks: the first that ends ends them all, so that a process never limps on with a dead part."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

log = logging.getLogger(__name__)


async def supervise(tasks: Mapping[str, Coroutine[Any, Any, None]], stop: asyncio.Event) -> None:
    """Run `tasks` by name until `stop` is set or one of them ends; then cancel the rest and wait for them.

    Raises what the first one raised. A root task that just returns is an error too: it was meant to run for ever.
    """
    running = {asyncio.create_task(work, name=name) for name, work in tasks.items()}
    stopped = asyncio.create_task(stop.wait(), name="stop")
    try:
        done, _ = await asyncio.wait({*running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in done if task is not stopped]
        for task in ended:
            error = task.exception()
            if error is None:
                raise RuntimeError(f"{task.get_name()} ended though nobody stopped it")
            log.error("%s failed: %s", task.get_name(), error)
            raise error
    finally:
        for task in (*running, stopped):
            task.cancel()
        await asyncio.wait({*running, stopped})
