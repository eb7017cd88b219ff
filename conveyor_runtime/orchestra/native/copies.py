"""The order of copies into a sandbox: only the newest may put what it has copied into its place.

A worker that stands still in the middle of a copy is taken for dead. When it goes on, its successor has copied the same
and perhaps built in it. So whoever begins notes that in the file `copies` of the home, one line each, and looks there
again at the end, under a lock, before it renames: work that takes long is done beside. Blocking: call it in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from conveyor_runtime.errors import BackendError

__all__ = ["Copies"]

_PATIENCE = 10.0  # seconds for another to rename two directories; it may stand still just there
_POLL = 0.01


class Copies:
    """Those of one sandbox."""

    def __init__(self, home: Path) -> None:
        self._file = home / "copies"

    def begin(self, target: str) -> str:
        """Note a copy to this path below the workspace, in its shortest form; returns what names it. Raises OSError."""
        nonce = secrets.token_hex(8)
        file = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, json.dumps([nonce, target]).encode() + b"\n")
        finally:
            os.close(file)
        return nonce

    @contextlib.contextmanager
    def turn(self, nonce: str) -> Iterator[None]:
        """While this lasts, nobody else has a turn. Raises `BackendError` if a later copy to the same place, or to one
        inside or around it, has begun, OSError if the sandbox is gone."""
        with open(self._file, "rb") as file:
            _lock(file.fileno())
            copies = [json.loads(line) for line in file]
            names = [name for name, _ in copies]
            at = names.index(nonce) if nonce in names else None  # another sandbox has the name by now
            if at is None or any(_overlap(copies[at][1], target) for _, target in copies[at + 1 :]):
                raise BackendError("a later copy into the workspace has begun")
            yield


def _lock(file: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BackendError("another copy into the workspace does not end") from None
            time.sleep(_POLL)
        else:
            return


def _overlap(one: str, other: str) -> bool:
    """Whether one of the paths is the other, or inside of it."""
    paths = [() if path == "." else tuple(path.split("/")) for path in (one, other)]
    least = min(map(len, paths))
    return paths[0][:least] == paths[1][:least]
