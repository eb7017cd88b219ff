"""Where the qemu backend keeps things.

    <root>/<namespace>/vm/                        the files of its machine, see `vm`
    <root>/<namespace>/vm.json                    what the machine is
    <root>/<namespace>/{tasks,volumes}/<id>.json  who they belong to and what they asked for
    <root>/<namespace>/lock                       held by whoever starts or removes something in it
    <root>/.gone-<namespace>-<random>/            a namespace being removed

Blocking, but all files are small; what is not is `remove`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conveyor_runtime.errors import BackendError, TerminalError
from conveyor_runtime.orchestra.names import check_task_id
from conveyor_runtime.orchestra.native.retiring import remove_tree
from conveyor_runtime.orchestra.task import Owner

__all__ = ["Layout", "TaskMeta", "VmMeta", "VolumeMeta"]

log = logging.getLogger(__name__)

_STALE = 3600.0  # seconds after which a namespace with nothing in it is of a process that died


@dataclass(frozen=True)
class VmMeta:
    """What later tasks of the namespace have to make do with."""

    boot: str
    """Another one each time it begins."""
    image: str
    """Its digest."""
    network: bool
    memory_mib: int
    exports: list[list[Any]] = field(default_factory=list)
    """Tag, source and read-only of each directory of the host that it can mount."""


@dataclass(frozen=True)
class TaskMeta:
    """What must be known of a task by processes that did not start it."""

    owner: Owner
    env: dict[str, str]
    user: str
    workdir: str
    volumes: list[str]
    created_at: datetime
    boot: str
    """Of the machine it was started in; in another one it does not run."""
    job: str = ""
    """Name of the job that is a container's command; empty for a sandbox."""
    watcher: int = 0
    """Process in the guest that watches over it."""


@dataclass(frozen=True)
class VolumeMeta:
    """What must be known of a volume."""

    owner: Owner
    created_at: datetime


class Layout:
    """The files below one root, which belongs to this user alone."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def home(self, ns: str) -> Path:
        """The directory of a namespace. Raises `TerminalError` for what cannot be one."""
        if not ns or ns.startswith(".") or "/" in ns or "\0" in ns:
            raise TerminalError(f"{ns!r} is no namespace")
        return self.root / ns

    def vm(self, ns: str) -> Path:
        """The directory of its machine."""
        return self.home(ns) / "vm"

    def lock(self, ns: str) -> Path:
        """The file to be locked by whoever changes what is in it."""
        return self.home(ns) / "lock"

    def read_vm(self, ns: str) -> VmMeta | None:
        """None if it has no machine."""
        found = _read(self.home(ns) / "vm.json")
        return None if found is None else VmMeta(**found)

    def write_vm(self, ns: str, meta: VmMeta) -> None:
        """Note what its machine is."""
        _write(self.home(ns) / "vm.json", asdict(meta))

    def read_task(self, ns: str, task_id: str) -> TaskMeta | None:
        """None if there is none."""
        found = _read(self._task(ns, task_id))
        if found is None:
            return None
        owner, created_at = Owner(**found.pop("owner")), datetime.fromisoformat(found.pop("created_at"))
        return TaskMeta(owner=owner, created_at=created_at, **found)

    def write_task(self, ns: str, task_id: str, meta: TaskMeta) -> None:
        """From here on the task is there."""
        _write(self._task(ns, task_id), asdict(meta))

    def tasks(self, ns: str) -> list[str]:
        """The ids of all tasks."""
        return _ids(self.home(ns) / "tasks")

    def read_volume(self, ns: str, name: str) -> VolumeMeta | None:
        """None if there is none."""
        found = _read(self._volume(ns, name))
        if found is None:
            return None
        return VolumeMeta(Owner(**found["owner"]), datetime.fromisoformat(found["created_at"]))

    def write_volume(self, ns: str, name: str, meta: VolumeMeta) -> None:
        """From here on the volume is there."""
        _write(self._volume(ns, name), asdict(meta))

    def volumes(self, ns: str) -> list[str]:
        """The names of all volumes."""
        return _ids(self.home(ns) / "volumes")

    def forget_task(self, ns: str, task_id: str) -> None:
        """From here on it is not there."""
        self._task(ns, task_id).unlink(missing_ok=True)

    def forget_volume(self, ns: str, name: str) -> None:
        """From here on it is not there."""
        self._volume(ns, name).unlink(missing_ok=True)

    def namespaces(self) -> Iterator[tuple[str, list[TaskMeta | VolumeMeta], datetime]]:
        """Every namespace with what is in it, and when it last changed. Removes what was left half-removed, and tells
        of one with nothing in it only when it is old: somebody may be about to start something."""
        for entry in sorted(self.root.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                changed = entry.stat().st_mtime
                if entry.name.startswith(".gone-"):
                    remove_tree(entry)
                elif entry.is_dir() and not entry.name.startswith("."):
                    metas = self._metas(entry.name)
                    if metas or time.time() - changed > _STALE:
                        yield entry.name, metas, datetime.fromtimestamp(changed, UTC)

    def remove(self, ns: str) -> list[Path]:
        """Take its name away, then its files, and those that somebody else left half-removed; what remains."""
        with contextlib.suppress(FileNotFoundError):
            self.home(ns).rename(self.root / f".gone-{ns}-{secrets.token_hex(8)}")
        ours = re.compile(rf"\.gone-{re.escape(ns)}-[0-9a-f]{{16}}")
        left = [self.root / name for name in os.listdir(self.root) if ours.fullmatch(name)]
        for path in left:
            remove_tree(path)
        return [path for path in left if path.exists()]

    def _metas(self, ns: str) -> list[TaskMeta | VolumeMeta]:
        found: list[TaskMeta | VolumeMeta | None] = []
        try:
            found += [self.read_task(ns, task_id) for task_id in self.tasks(ns)]
            found += [self.read_volume(ns, name) for name in self.volumes(ns)]
        except BackendError as error:
            # One broken file must not hide other namespaces.
            log.warning("%s", error, extra={"action": "namespace_unreadable"})
        return [meta for meta in found if meta is not None]

    def _task(self, ns: str, task_id: str) -> Path:
        return self.home(ns) / "tasks" / f"{check_task_id(task_id)}.json"

    def _volume(self, ns: str, name: str) -> Path:
        return self.home(ns) / "volumes" / f"{check_task_id(name)}.json"


def _ids(directory: Path) -> list[str]:
    try:
        return sorted(name.removesuffix(".json") for name in os.listdir(directory) if name.endswith(".json"))
    except FileNotFoundError:
        return []


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text())
        if not isinstance(found, dict):
            raise ValueError("not an object")
        return found
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise BackendError(f"{file} cannot be read: {error}") from error


def _write(file: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    file.parent.mkdir(mode=0o700, exist_ok=True)
    draft = file.with_suffix(f".{secrets.token_hex(8)}")
    draft.write_text(json.dumps(content, default=str))
    draft.rename(file)
