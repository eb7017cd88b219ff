"""What execs, and the keepers of containers, have written down in a home: who runs in it, and how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
from pathlib import Path
from typing import Any

from conveyor_runtime.errors import BackendError
from conveyor_runtime.orchestra.execs import EXEC_MARK, Record
from conveyor_runtime.orchestra.native import cgroups
from conveyor_runtime.orchestra.native.layout import read_meta
from conveyor_runtime.orchestra.native.proc import Target, start_of
from conveyor_runtime.orchestra.native.retiring import listdir

__all__ = [
    "doom",
    "homes",
    "read_record",
    "records",
    "targets",
    "users_of",
    "waits_for_start",
    "write_once",
]


def homes(place: Path) -> list[Path]:
    """The sandboxes, containers and volumes of a namespace, or of what is left of one."""
    return [path for path in listdir(place) if (path / "meta.json").exists()]


def waits_for_start(home: Path) -> bool:
    """Whether a container has been made and not started yet."""
    return home.exists() and not ((home / "pid").exists() or (home / "exit").exists())


def records(home: Path) -> list[Record]:
    """The execs that have begun in a sandbox."""
    return [record for path in listdir(home / "execs") if (record := Record.parse(path.name))]


def targets(home: Path) -> list[Target]:
    """All processes of a sandbox or container, by what they recorded: also where the rest cannot be read."""
    found = [Target(f"{EXEC_MARK}={record.nonce}".encode(), record.pid, record.start) for record in records(home)]
    record = read_record(home, "pid")
    if record:
        groups = tuple(cgroups.groups_of(home))
        found.append(Target(record["mark"].encode(), record["pid"], record["start"], groups))
    return found


def read_record(home: Path, name: str) -> dict[str, Any]:
    """What a container's keeper wrote; empty if it has not."""
    try:
        found = json.loads((home / name).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise BackendError(f"the container {home} cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


def doom(home: Path) -> bool:
    """Let a container count as cancelled and never be started again; False if it is gone."""
    try:
        (home / "cancelled").touch(mode=0o600)
    except FileNotFoundError:
        return False
    record = read_record(home, "pid")
    if record and start_of(record["keeper"]) == record["keeper_start"]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(record["keeper"], signal.SIGUSR1)  # it may be waiting to start it again
    return True


def write_once(file: Path, found: dict[str, object]) -> None:
    """Unless it is there. Whole or not at all; nothing if its directory is gone."""
    draft = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
    with contextlib.suppress(FileNotFoundError, FileExistsError):
        draft.write_text(json.dumps(found))
        try:
            os.link(draft, file)
        finally:
            draft.unlink()


def users_of(root: Path, ns: str, volume: str) -> list[str]:
    """The containers of the namespace that mount it and have not ended."""
    found = []
    for path in listdir(root / ns):
        meta = read_meta(path)
        if meta is not None and volume in meta.volumes and not (path / "exit").exists():
            found.append(path.name)
    return found
