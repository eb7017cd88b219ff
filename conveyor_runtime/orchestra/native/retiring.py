"""Taking directories of the native backend away: renamed first and then removed, so that what bears its proper name is
whole. Blocking: call it in a thread."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from conveyor_runtime.errors import BackendError
from conveyor_runtime.orchestra.native import cgroups, records
from conveyor_runtime.orchestra.native.proc import kill

__all__ = ["remove_retired", "remove_tree", "retire", "retire_one", "retired"]

_PATIENCE = 10.0  # seconds for what is killed to end


def retire(root: Path, ns: str) -> None:
    """Take a namespace's name away, so that nothing can begin in it any more. From then it is among `retired`."""
    with contextlib.suppress(FileNotFoundError):
        (root / ns).rename(root / f".gone-{ns}-{secrets.token_hex(8)}")


def retire_one(root: Path, ns: str, task_id: str) -> Path | None:
    """The same for one sandbox or container of it; where it is now, None if it was not there."""
    for _ in range(10):
        place = root / f".gone-{ns}-{secrets.token_hex(8)}"
        place.mkdir(mode=0o700)
        try:
            (root / ns / task_id).rename(place / task_id)
        except FileNotFoundError:
            if (root / ns / task_id).exists():
                continue  # somebody who closes the namespace has taken the place away, not the sandbox
            remove_tree(place)
            return None
        return place
    raise BackendError(f"{task_id} of {ns} cannot be moved away")


def retired(root: Path, ns: str) -> list[Path]:
    """What is still to be removed of a namespace and its parts (`<namespace>_...`), whoever began with it."""
    of_it = re.compile(rf"\.gone-{re.escape(ns)}(_.*)?-[0-9a-f]{{16}}")
    return [root / name for name in sorted(os.listdir(root)) if of_it.fullmatch(name)]


def remove_retired(place: Path) -> None:
    """Kill what runs in what was retired and remove it, with its control groups: who took the name away may have died
    before that. Raises `BackendError` if it cannot be killed, or a group cannot be removed."""
    for home in records.listdir(place):
        targets = [] if records.has_ended(home) else records.targets(home)
        if targets:
            cgroups.thaw(home)
            if left := kill(targets, _PATIENCE):
                raise BackendError(f"{home.name} cannot be removed: processes {left} cannot be killed")
        cgroups.remove(home)
    remove_tree(place)


def remove_tree(path: Path) -> None:
    """Remove what can be removed; what is not there is removed. Builds leave directories without write permission
    (module caches do)."""

    def allow_and_retry(function: Callable[..., object], name: str, _: object) -> None:
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(name), 0o700)
            if not os.path.islink(name):
                os.chmod(name, 0o700)
            if function is os.unlink:
                os.unlink(name)
            else:
                shutil.rmtree(name, ignore_errors=True)

    if path.exists():
        shutil.rmtree(path, onerror=allow_and_retry)
