"""Where the native backend keeps things, and the operations on files that must be safe against a crash half-way.

    <root>/<namespace>/<task id>/{workspace,home,tmp,execs,meta.json}     a sandbox
    <root>/.new-<random>/                                                 one being made
    <root>/.gone-<namespace>-<random>/                                    a namespace being removed

A sandbox is made under another name and renamed, a namespace is renamed and then removed: what bears its proper name
is whole. Blocking: call it in a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from conveyor_runtime.errors import BackendError, ConfigError
from conveyor_runtime.orchestra.native.records import listdir
from conveyor_runtime.orchestra.native.retiring import remove_retired, remove_tree
from conveyor_runtime.orchestra.task import Owner

__all__ = [
    "SANDBOX_PARTS",
    "Meta",
    "default_root",
    "is_of",
    "make",
    "namespaces",
    "node_name",
    "open_root",
    "read_meta",
]

log = logging.getLogger(__name__)

SANDBOX_PARTS = ("workspace", "home", "tmp", "execs")
_STALE = 3600.0  # seconds after which a half-made sandbox is of a process that died
_GONE_STALE = 60.0  # seconds after which a half-removed one is; to remove it beside somebody who still does is no harm


@dataclass(frozen=True)
class Meta:
    """What a sandbox, a container or a volume must remember for processes that did not make it."""

    owner: Owner
    env: dict[str, str]
    created_at: datetime
    kind: str = "sandbox"
    mark: str = ""
    """Of a container: the environment entry by which its processes are known."""
    volumes: tuple[str, ...] = ()
    """Of a container: what it mounts."""

    @property
    def nonce(self) -> str:
        """The value of the mark."""
        return self.mark.partition("=")[2]


def default_root() -> Path:
    """`/var/tmp/conveyor-<uid>`: on disk rather than in memory, and kept over a reboot."""
    return Path(f"/var/tmp/conveyor-{os.getuid()}")  # noqa: S108 - open_root refuses one that is not ours alone


def open_root(root: Path) -> Path:
    """Make the root with mode 0700, or take it if it is ours alone. Raises `ConfigError` otherwise."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.lstat()
    except OSError as error:
        raise ConfigError(f"the native root {root} cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(f"the native root {root} must be a directory that belongs to user {os.getuid()}")
    if found.st_mode & 0o077:
        root.chmod(0o700)
    return root.resolve()


def node_name(root: Path) -> str:
    """`native-<machine>-<root>`: two roots on one machine are two places, a sandbox of one is not in the other."""
    machine = ""
    with contextlib.suppress(OSError):
        machine = Path("/etc/machine-id").read_text().strip()
    if not re.fullmatch(r"[0-9a-f]{32}", machine):
        machine = _own_id(root / "node-id")
    return f"native-{machine[:16]}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"


def make(
    root: Path,
    ns: str,
    name: str,
    meta: Meta,
    parts: Iterable[str],
    *,
    durable: bool = True,
    furnish: Callable[[Path], None] | None = None,
) -> bool:
    """Make it with these directories unless it is there; False if it was. Any number of processes may try at once: one
    wins, whole. `durable` keeps it from being left without its owner by a power cut, at the price of two syncs;
    `furnish` puts more into it while it has not got its name."""
    final = root / ns / name
    if final.is_dir():
        return False
    draft = root / f".new-{secrets.token_hex(8)}"
    draft.mkdir(mode=0o700)
    try:
        for part in parts:
            (draft / part).mkdir(mode=0o700)
        if furnish is not None:
            furnish(draft)
        text = json.dumps({**vars(meta), "owner": vars(meta.owner), "created_at": meta.created_at.isoformat()})
        if durable:
            _write_durably(draft / "meta.json", text)
        else:
            (draft / "meta.json").write_text(text)
        for _ in range(10):
            (root / ns).mkdir(mode=0o700, exist_ok=True)
            try:
                draft.rename(final)  # fails on a directory that is not empty: somebody else was first
            except FileNotFoundError:
                continue  # the namespace is being removed just now
            except OSError:
                if final.is_dir():
                    return False
                raise
            return True
        raise BackendError(f"{ns} is being removed while {name} starts in it")
    finally:
        remove_tree(draft)


def read_meta(sandbox: Path) -> Meta | None:
    """None if the sandbox is not there."""
    try:
        found = json.loads((sandbox / "meta.json").read_text())
        created_at = datetime.fromisoformat(found["created_at"]).astimezone(UTC)
        return Meta(
            Owner(**found["owner"]),
            found["env"],
            created_at,
            found.get("kind", "sandbox"),
            found.get("mark", ""),
            tuple(found.get("volumes", ())),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackendError(f"the native sandbox {sandbox} cannot be read: {error}") from error


def is_of(home: Path, meta: Meta) -> bool:
    """Whether it is there and of it is known just this. One that cannot be read may well be."""
    try:
        return read_meta(home) == meta
    except BackendError:
        return True


def _write_durably(file: Path, text: str) -> None:
    """So that no power cut leaves a sandbox that nobody can tell the owner of."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
        written.write(text)
        written.flush()
        os.fsync(written.fileno())
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def namespaces(root: Path) -> Iterator[tuple[str, list[Meta], datetime]]:
    """Every namespace with what is in it, and when that last changed. One that cannot be read has nothing in it, and
    is told of once it is old.

    Also sweeps up what processes that died left half-made or half-removed.
    """
    for entry in sorted(root.iterdir()):
        try:
            changed = entry.lstat().st_mtime
            is_stale = time.time() - changed > _STALE
            if entry.name.startswith((".new-", ".gone-")):
                if is_stale or (entry.name.startswith(".gone-") and time.time() - changed > _GONE_STALE):
                    remove_retired(entry)
                continue
            if entry.name.startswith(".") or not entry.is_dir():
                continue
            metas = _metas(entry)
        except (OSError, BackendError) as error:
            log.warning("cannot look at %s: %s", entry, error, extra={"action": "namespace_unreadable"})
            continue
        if metas or is_stale:
            yield entry.name, metas, datetime.fromtimestamp(changed, UTC)


def _metas(namespace: Path) -> list[Meta]:
    """What can be read of it: one broken file must not hide the rest, nor other namespaces."""
    metas = []
    for path in listdir(namespace):
        try:
            meta = read_meta(path)
        except BackendError as error:
            log.warning("%s", error, extra={"action": "namespace_unreadable"})
            continue
        if meta is not None:
            metas.append(meta)
    return metas


def _own_id(file: Path) -> str:
    """For machines without an id of their own (most container images): a random one, kept in the root."""
    draft = file.with_name(f".new-{secrets.token_hex(8)}")
    draft.write_text(secrets.token_hex(16))
    with contextlib.suppress(FileExistsError):
        os.link(draft, file)
    draft.unlink()
    return file.read_text().strip()
