"""`conveyor restore`: a backup as a store that is whole or is not there, whenever the restore is killed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path

from conveyor_runtime.bus import Bus, EmbeddedServer
from conveyor_runtime.bus.restoring import restoring
from conveyor_runtime.bus.server_setup import lock_data_dir
from conveyor_runtime.bus.snapshot import CHUNK, restore_stream
from conveyor_runtime.bus.streams import STATE
from conveyor_runtime.daemon.backup import FORMAT, MANIFEST, ORDER, Told, run_tidily
from conveyor_runtime.daemon.connect import state_on
from conveyor_runtime.daemon.soundness import EMBEDDED, MARKS, new_epoch
from conveyor_runtime.errors import ConfigError
from conveyor_runtime.store.integrity import HighWater

#: In the folder of an embedded server: where a store is restored before it becomes that server's.
_UNFINISHED = "restoring"


def run_restore(file: Path, nats_url: str, data_dir: Path) -> Told:
    """Restore a backup to a bus without our streams, or to an empty data directory if no bus is named.

    Raises BusError, ConfigError, OSError.
    """
    return run_tidily(_restore(file, nats_url, data_dir))


def check_restored(folder: Path) -> None:
    """Raise ConfigError if a restore to this embedded server's folder has not ended: there is no store yet."""
    if (folder / _UNFINISHED).exists() and not (folder / "store").exists():
        raise ConfigError(
            f"a restore to {folder} has not ended. Wait for it; if it was broken off, do it again (`conveyor restore"
            f" FILE --data {folder.parent}`), or remove {folder / _UNFINISHED} to begin with an empty store"
        )


async def _restore(file: Path, nats_url: str, data_dir: Path) -> Told:
    with _opened(file) as archive:
        manifest = json.loads(archive.read(MANIFEST))
        async with _named_bus(nats_url) if nats_url else _fresh_store(data_dir / "nats") as bus, restoring(bus) as ours:
            # The state last: without it nobody takes this for a store to be served.
            for name in sorted(ORDER, key=lambda it: it == STATE):
                about = json.loads(archive.read(f"{name}.json"))
                if not nats_url:
                    about["config"]["num_replicas"] = 1
                ours.check()
                await restore_stream(
                    bus, name, {**about, "config": ours.marked(about["config"])}, _chunks(archive, name)
                )
            ours.check()
            await _begin_anew(bus, data_dir, datetime.fromisoformat(manifest["at"]), embedded=not nats_url)
        size = sum(member.file_size for member in archive.infolist())
    return Told(manifest["at"], manifest["installation"], manifest["messages"], size)


async def _begin_anew(bus: Bus, data_dir: Path, backup_at: datetime, *, embedded: bool) -> None:
    """A new epoch: whoever knew the store before must notice that it is another."""
    async with state_on(bus) as state:
        await new_epoch(state, backup_at)
        if embedded:
            mark = HighWater.read(data_dir / MARKS, EMBEDDED)
            await mark.take(bus, state)


@asynccontextmanager
async def _named_bus(nats_url: str) -> AsyncIterator[Bus]:
    bus = await Bus.connect(nats_url, name="conveyor-restore")
    try:
        yield bus
    finally:
        await bus.close()


@asynccontextmanager
async def _fresh_store(folder: Path) -> AsyncIterator[Bus]:
    """The bus of a server on a store of its own. That becomes the one of `folder`, all at once, when the block ends."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True, mode=0o700)
    lock = await lock_data_dir(folder)  # as the server does whose folder it will be
    try:
        if await asyncio.to_thread((folder / "store").exists):
            raise ConfigError(f"{folder} holds a store already; move it away first, or restore to another --data")
        unfinished = folder / _UNFINISHED
        await _remove(unfinished)
        try:
            server = EmbeddedServer(unfinished)
            await server.start()
            try:
                async with _named_bus(server.url) as bus:
                    yield bus
            finally:
                await server.stop(grace=60)
            await asyncio.to_thread(_put_in_place, unfinished, folder)
        finally:
            await _remove(unfinished)
    finally:
        os.close(lock)


async def _remove(unfinished: Path) -> None:
    """Remove what a restore has left, once its server is gone. Raises ConfigError if that does not go."""
    with suppress(FileNotFoundError):
        os.close(await lock_data_dir(unfinished))
        await asyncio.to_thread(shutil.rmtree, unfinished)


def _put_in_place(unfinished: Path, folder: Path) -> None:
    _sync(unfinished / "store")
    (unfinished / "store").rename(folder / "store")
    _sync_one(folder)


def _sync(folder: Path) -> None:
    """Have the disk hold all that is in `folder`: the server does not sync what it restores."""
    for place, _, files in os.walk(folder):
        for name in files:
            _sync_one(Path(place, name))
        _sync_one(Path(place))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _opened(file: Path) -> zipfile.ZipFile:
    """A backup, looked through for damage before anything is touched. Raises ConfigError."""
    try:
        archive = zipfile.ZipFile(file)
        bad = archive.testzip()
        wanted = {MANIFEST, *(f"{name}.{kind}" for name in ORDER for kind in ("json", "snapshot"))}
        if bad is None and not wanted - set(archive.namelist()):
            if json.loads(archive.read(MANIFEST))["format"] > FORMAT:
                raise ConfigError(f"{file} was made by a newer version")
            return archive
    except (zipfile.BadZipFile, ValueError, LookupError, EOFError) as error:
        raise ConfigError(f"{file} is no backup, or it is damaged: {error}") from error
    raise ConfigError(f"{file} is damaged" + (f": {bad} does not match its checksum" if bad else ": parts are missing"))


def _chunks(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    with archive.open(f"{name}.snapshot") as source:
        while chunk := source.read(CHUNK):
            yield chunk
