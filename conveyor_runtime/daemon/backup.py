"""`conveyor backup` and `conveyor restore`: all of an installation's streams in one file, taken while it is running.

Each stream is consistent in itself; across them the order keeps the promises. Results come first, so that one which is
taken in and acknowledged meanwhile is in the state that follows. Dispatches come after the state: those that are new
are of runs it does not know and are dropped, and none comes back that it knows to be done. Logs come last, so that
those of every result are there.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from conveyor_runtime import __version__
from conveyor_runtime.bus import Bus, EmbeddedServer
from conveyor_runtime.bus.snapshot import CHUNK, Snapshot, restore_stream
from conveyor_runtime.bus.streams import DLQ, LOGS, MESSAGES, RESULTS, STATE, STREAMS, is_ours, stream_info
from conveyor_runtime.daemon.connect import state_on
from conveyor_runtime.errors import BusError, ConfigError, RevisionConflict
from conveyor_runtime.models import utc_now
from conveyor_runtime.store import Put, State, keys
from conveyor_runtime.store.integrity import HighWater

ORDER = (RESULTS, STATE, MESSAGES, LOGS, DLQ)

_FORMAT = 1
_MANIFEST = "manifest.json"

#: The high-water marks, in a data directory; an embedded server's goes by this name.
MARKS = "high-water.json"
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Told:
    """What a backup says of itself. `at` is RFC 3339: everything acknowledged before it is in."""

    at: str
    installation: str
    messages: int
    """In all streams."""
    bytes: int


def run_backup(file: Path, nats_url: str) -> Told:
    """Write the backup of the installation on this bus. Raises BusError, ConfigError, OSError."""
    return asyncio.run(_backup(file, nats_url))


def run_restore(file: Path, nats_url: str, data_dir: Path) -> Told:
    """Restore a backup to a bus without our streams, or to an empty data directory if no bus is named.

    Raises BusError, ConfigError, OSError.
    """
    return asyncio.run(_restore(file, nats_url, data_dir))


async def _backup(file: Path, nats_url: str) -> Told:
    bus = await Bus.connect(nats_url, name="conveyor-backup")
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        if not await is_ours(bus):
            raise ConfigError("there is no Conveyor Runtime on this bus: nothing to back up")
        async with state_on(bus) as state:
            meta = await state.ensure_meta()
        at, messages = utc_now().isoformat(), 0
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)  # specs may hold secrets
        with os.fdopen(descriptor, "w+b") as out:
            with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:  # the server has compressed it
                for name in ORDER:
                    messages += await _write_stream(bus, name, archive)
                manifest = {"format": _FORMAT, "version": __version__, "at": at, "messages": messages}
                archive.writestr(_MANIFEST, json.dumps({**manifest, "installation": meta.installation}, indent=1))
            out.flush()
            os.fsync(out.fileno())
            size = out.tell()
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
        await bus.close()
    return Told(at, meta.installation, messages, size)


async def _write_stream(bus: Bus, name: str, archive: zipfile.ZipFile) -> int:
    """Add a stream to the archive; how many messages it has."""
    snapshot = Snapshot(bus, name)
    with archive.open(f"{name}.snapshot", "w", force_zip64=True) as out:
        async for chunk in snapshot:
            out.write(chunk)
    archive.writestr(f"{name}.json", json.dumps(snapshot.about))
    return int(snapshot.about["state"]["messages"])


async def _restore(file: Path, nats_url: str, data_dir: Path) -> Told:
    with _opened(file) as archive:
        manifest = json.loads(archive.read(_MANIFEST))
        async with _fresh_bus(nats_url, data_dir) as bus:
            for name in STREAMS:
                if await stream_info(bus, name) is not None:
                    raise ConfigError(f"there is a stream {name} on this bus already; restore to a fresh one")
            made: list[str] = []
            try:
                # The state last: without it nobody takes this for a store to be served.
                for name in sorted(ORDER, key=lambda it: it == STATE):
                    about = json.loads(archive.read(f"{name}.json"))
                    if not nats_url:
                        about["config"]["num_replicas"] = 1
                    made.append(name)
                    await restore_stream(bus, name, about, _chunks(archive, name))
                await _begin_anew(bus, data_dir, datetime.fromisoformat(manifest["at"]), embedded=not nats_url)
            except BaseException:
                for name in made:
                    with suppress(BusError):
                        await bus.api(f"STREAM.DELETE.{name}")
                raise
        size = sum(member.file_size for member in archive.infolist())
    return Told(manifest["at"], manifest["installation"], manifest["messages"], size)


async def _begin_anew(bus: Bus, data_dir: Path, backup_at: datetime, *, embedded: bool) -> None:
    """A new epoch: whoever knew the store before must notice that it is another."""
    async with state_on(bus) as state:
        await new_epoch(state, backup_at)
        if embedded:
            mark = HighWater.read(data_dir / MARKS, EMBEDDED)
            await mark.take(bus, state)


async def new_epoch(state: State, backup_at: datetime | None = None) -> None:
    """Give the store another epoch, and note when the backup was taken that it comes from. Processes that knew it under
    the epoch before end."""
    while True:
        meta = await state.ensure_meta()
        found = await state.store.get(keys.META)
        assert found is not None
        update = meta.model_copy(update={"epoch": secrets.token_hex(8), "backup_at": backup_at or meta.backup_at})
        with suppress(RevisionConflict):
            await state.commit(Put(keys.META, update, found.revision))
            return


@asynccontextmanager
async def _fresh_bus(nats_url: str, data_dir: Path) -> AsyncIterator[Bus]:
    """The bus to restore to: the one named, else that of an embedded server in an empty data directory."""
    if nats_url:
        bus = await Bus.connect(nats_url, name="conveyor-restore")
        try:
            yield bus
        finally:
            await bus.close()
        return
    folder = data_dir / "nats"
    if (folder / "store").exists():
        raise ConfigError(f"{folder} holds a store already; move it away first, or restore to another --data")
    server = EmbeddedServer(folder)
    await server.start()
    try:
        bus = await Bus.connect(server.url, name="conveyor-restore")
        try:
            yield bus
        finally:
            await bus.close()
    finally:
        await server.stop(grace=60)


def _opened(file: Path) -> zipfile.ZipFile:
    """A backup, looked through for damage before anything is touched. Raises ConfigError."""
    try:
        archive = zipfile.ZipFile(file)
        bad = archive.testzip()
        wanted = {_MANIFEST, *(f"{name}.{kind}" for name in ORDER for kind in ("json", "snapshot"))}
        if bad is None and not wanted - set(archive.namelist()):
            if json.loads(archive.read(_MANIFEST))["format"] > _FORMAT:
                raise ConfigError(f"{file} was made by a newer version")
            return archive
    except (zipfile.BadZipFile, ValueError, LookupError, EOFError) as error:
        raise ConfigError(f"{file} is no backup, or it is damaged: {error}") from error
    raise ConfigError(f"{file} is damaged" + (f": {bad} does not match its checksum" if bad else ": parts are missing"))


def _chunks(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    with archive.open(f"{name}.snapshot") as source:
        while chunk := source.read(CHUNK):
            yield chunk
