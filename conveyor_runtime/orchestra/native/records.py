"""What execs, and the keepers of containers, have written down in a home: who runs in it, and how it ended."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conveyor_runtime.errors import BackendError
from conveyor_runtime.orchestra.execs import EXEC_MARK, Record
from conveyor_runtime.orchestra.native import cgroups
from conveyor_runtime.orchestra.native.proc import Target, outputs_of, start_of

__all__ = [
    "doom",
    "has_ended",
    "homes",
    "is_being_started",
    "listdir",
    "locked",
    "opened",
    "read_record",
    "records",
    "starting_name",
    "targets",
    "waits_for_start",
    "write_once",
]

_STARTING = "starting."  # then pid, its start time, and what makes it unique


def listdir(path: Path) -> list[Path]:
    """What is in it, sorted; nothing if it is not there."""
    try:
        return sorted(path.iterdir())
    except FileNotFoundError:
        return []


def homes(place: Path) -> list[Path]:
    """The sandboxes, containers and volumes of a namespace, or of what is left of one."""
    return [path for path in listdir(place) if (path / "meta.json").exists()]


def waits_for_start(home: Path) -> bool:
    """Whether a container has been made and not started yet."""
    return home.exists() and not ((home / "pid").exists() or (home / "exit").exists())


def starting_name() -> str:
    """The name of a file by which a caller of this process says that it is about to have a container started."""
    return f"{_STARTING}{os.getpid()}.{start_of(os.getpid())}.{secrets.token_hex(8)}"


def is_being_started(home: Path) -> bool:
    """Whether somebody who lives is about to."""
    found = [path.name.split(".") for path in listdir(home) if path.name.startswith(_STARTING)]
    return any(start_of(int(pid)) == int(start) for _, pid, start, _ in found)


@contextlib.contextmanager
def opened(home: Path) -> Iterator[Path | None]:
    """The directory itself, whatever bears its name meanwhile; None if it is not there."""
    try:
        directory = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield Path(f"/proc/self/fd/{directory}")
    finally:
        os.close(directory)


@contextlib.contextmanager
def locked(home: Path) -> Iterator[Path | None]:
    """The container's directory itself, if nobody has it in hand: for as long as this lasts, then, nobody will.

    A keeper has it for as long as the keeper lives, and so has a command that a keeper has forked until it is executed.
    """
    with opened(home) as place:
        try:
            if place is not None:
                fcntl.flock(int(place.name), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            place = None
        yield place


def has_ended(home: Path) -> bool:
    """Whether a container has ended and nothing of it is left: who wrote that has seen to it."""
    with contextlib.suppress(BackendError):
        end = read_record(home, "exit")
        return bool(end) and not end["left"]
    return False


def records(home: Path) -> list[Record]:
    """The execs that have begun in a sandbox."""
    return [record for path in listdir(home / "execs") if (record := Record.parse(path.name))]


def targets(home: Path) -> list[Target]:
    """All processes of a sandbox or container, by what they recorded: also where the rest cannot be read."""
    found = [Target(f"{EXEC_MARK}={record.nonce}".encode(), record.pid, record.start) for record in records(home)]
    record = read_record(home, "pid")
    if record:
        groups = tuple(cgroups.groups_of(home))
        found.append(Target(record["mark"].encode(), record["pid"], record["start"], groups, outputs_of(home)))
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
