"""`conveyor backup`: all of an installation's streams in one file, taken while it is running.

Each stream is consistent in itself; across them the order keeps the promises. Results come first, so that one which is
taken in and acknowledged meanwhile is in the state that follows. Dispatches come after the state: those that are new
are of runs it does not know and are dropped, and none comes back that it knows to be done. Logs come last, so that
those of every result are there.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import zipfile
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conveyor_runtime import __version__
from conveyor_runtime.bus import Bus
from conveyor_runtime.bus.restoring import refuse_unrestored
from conveyor_runtime.bus.snapshot import Snapshot
from conveyor_runtime.bus.streams import DLQ, LOGS, MESSAGES, RESULTS, STATE, is_ours
from conveyor_runtime.daemon.connect import state_on
from conveyor_runtime.errors import ConfigError
from conveyor_runtime.models import utc_now

ORDER = (RESULTS, STATE, MESSAGES, LOGS, DLQ)

FORMAT = 1
MANIFEST = "manifest.json"


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
    return run_tidily(_backup(file, nats_url))


def run_tidily(main: Coroutine[Any, Any, Told]) -> Told:
    """Run it so that SIGTERM, which ends this process, lets it remove what is half done before."""
    ended = False

    async def with_signals() -> Told:
        task = asyncio.ensure_future(main)

        def end() -> None:
            nonlocal ended
            ended = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
        return await task

    try:
        return asyncio.run(with_signals())
    finally:
        if ended:
            signal.raise_signal(signal.SIGTERM)


async def _backup(file: Path, nats_url: str) -> Told:
    bus = await Bus.connect(nats_url, name="conveyor-backup")
    partial = file.with_name(f"{_partial(file)}{os.getpid()}")
    try:
        _remove_leftovers(file)
        if not await is_ours(bus):
            raise ConfigError("there is no Conveyor Runtime on this bus: nothing to back up")
        await refuse_unrestored(bus)
        async with state_on(bus) as state:
            meta = await state.ensure_meta()
        at, messages = utc_now().isoformat(), 0
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)  # specs may hold secrets
        with os.fdopen(descriptor, "w+b") as out:
            fcntl.flock(out, fcntl.LOCK_EX)  # for as long as somebody writes it
            with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:  # the server has compressed it
                for name in ORDER:
                    messages += await _write_stream(bus, name, archive)
                manifest = {"format": FORMAT, "version": __version__, "at": at, "messages": messages}
                archive.writestr(MANIFEST, json.dumps({**manifest, "installation": meta.installation}, indent=1))
            out.flush()
            os.fsync(out.fileno())
            size = out.tell()
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
        await bus.close()
    return Told(at, meta.installation, messages, size)


def _partial(file: Path) -> str:
    """How the names of files begin that become `file` once they are whole; a process id follows."""
    return f".{file.name}."


def _remove_leftovers(file: Path) -> None:
    """Remove what backups to `file` have left that were killed: it holds all secrets, and nobody looks for it."""
    for left in file.parent.iterdir():
        if left.name.startswith(_partial(file)) and left.name.removeprefix(_partial(file)).isdecimal():
            with suppress(OSError), left.open("rb") as content:  # another's, or another is writing it
                fcntl.flock(content, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()


async def _write_stream(bus: Bus, name: str, archive: zipfile.ZipFile) -> int:
    """Add a stream to the archive; how many messages it has."""
    snapshot = Snapshot(bus, name)
    with archive.open(f"{name}.snapshot", "w", force_zip64=True) as out:
        async for chunk in snapshot:
            out.write(chunk)
    archive.writestr(f"{name}.json", json.dumps(snapshot.about))
    return int(snapshot.about["state"]["messages"])
