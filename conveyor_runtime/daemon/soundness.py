"""Only a sound store is served, and while it is, its high-water mark is kept beside it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime

from conveyor_runtime.bus import Bus
from conveyor_runtime.bus.address import parse_url
from conveyor_runtime.config import BusSettings
from conveyor_runtime.errors import ConfigError, InfrastructureError, RevisionConflict
from conveyor_runtime.store import Put, State, keys
from conveyor_runtime.store.integrity import HighWater, find_damage, unreadable_keys

log = logging.getLogger(__name__)

#: The high-water marks, in a data directory; an embedded server's goes by this name.
MARKS = "high-water.json"
EMBEDDED = "embedded"


@asynccontextmanager
async def sound_store(bus: Bus, state: State, settings: BusSettings) -> AsyncIterator[None]:
    """Serve only a store that is what was acknowledged, and keep its high-water mark for as long as the block lasts.

    Raises ConfigError, saying what is missing and how to go on, unless the settings accept the loss.
    """
    name = ",".join(parse_url(settings.url)[0]) if settings.url else EMBEDDED
    mark = HighWater.read(settings.data_dir / MARKS, name)
    meta = await state.meta()
    if meta is not None and mark.epoch in meta.former:
        # Restored in its place, or a loss was accepted, on purpose: what the mark tells is of a store before this one.
        mark = HighWater(mark.path, mark.bus_name)
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
                    await mark.move_on(bus, state)


async def new_epoch(state: State, backup_at: datetime | None = None) -> None:
    """Give the store another epoch, and note when the backup was taken that it comes from. Processes that knew it under
    the epoch before end."""
    while True:
        meta = await state.ensure_meta()
        found = await state.store.get(keys.META)
        assert found is not None
        update = {
            "epoch": secrets.token_hex(8),
            "former": (*meta.former, meta.epoch),
            "backup_at": backup_at or meta.backup_at,
        }
        with suppress(RevisionConflict):
            await state.commit(Put(keys.META, meta.model_copy(update=update), found.revision))
            return
