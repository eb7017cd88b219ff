"""Only a sound store is served, and while it is, its high-water mark is kept beside it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from conveyor_runtime.bus import Bus
from conveyor_runtime.bus.address import parse_url
from conveyor_runtime.config import BusSettings
from conveyor_runtime.daemon.backup import EMBEDDED, MARKS, new_epoch
from conveyor_runtime.errors import ConfigError, InfrastructureError
from conveyor_runtime.store import State
from conveyor_runtime.store.integrity import HighWater, find_damage, unreadable_keys

log = logging.getLogger(__name__)


@asynccontextmanager
async def sound_store(bus: Bus, state: State, settings: BusSettings) -> AsyncIterator[None]:
    """Serve only a store that is what was acknowledged, and keep its high-water mark for as long as the block lasts.

    Raises ConfigError, saying what is missing and how to go on, unless the settings accept the loss.
    """
    name = ",".join(parse_url(settings.url)[0]) if settings.url else EMBEDDED
    mark = HighWater.read(settings.data_dir / MARKS, name)
    if damage := await find_damage(bus, state, mark):
        said = "the store is damaged: " + "; ".join(damage)
        if not settings.accept_loss:
            await mark.note(damage)
            raise ConfigError(
                f"{said}. Move it away and restore the last backup (`conveyor restore FILE`), or serve what is left"
                " with --accept-loss"
            )
        log.error("%s. It is served as it is; what is missing is gone", said)
        mark.accepted = sorted(await unreadable_keys(bus))
        await new_epoch(state)
        await mark.take(bus, state)
    await state.ensure_meta()
    keeping = asyncio.create_task(mark.keep(bus, state), name="high-water mark")
    try:
        yield
    finally:
        keeping.cancel()
        with suppress(OSError, InfrastructureError):
            async with asyncio.timeout(2):
                if not mark.damage:
                    await mark.take(bus, state)
