"""The native backend: namespaces as directories, found again by any process with the same root."""

from __future__ import annotations

import asyncio
import logging
import resource
from datetime import UTC, datetime
from functools import partial
from itertools import combinations
from pathlib import Path

from conveyor_runtime.errors import BackendError, Gone, TerminalError
from conveyor_runtime.orchestra import checks, execs
from conveyor_runtime.orchestra.base import Prepared, Progress
from conveyor_runtime.orchestra.names import check_task_id, run_of
from conveyor_runtime.orchestra.native import cgroups, layout, records, retiring, starting
from conveyor_runtime.orchestra.native.container import NativeContainer
from conveyor_runtime.orchestra.native.freezing import FreezableContainer
from conveyor_runtime.orchestra.native.keeping import Keeping
from conveyor_runtime.orchestra.native.proc import Target
from conveyor_runtime.orchestra.native.removal import end_targets
from conveyor_runtime.orchestra.native.sandbox import NativeSandbox, check_user
from conveyor_runtime.orchestra.native.volume import NativeVolume, volume_dir
from conveyor_runtime.orchestra.status import NamespaceInfo
from conveyor_runtime.orchestra.task import Limits, Owner, Task

__all__ = ["NativeBackend"]

log = logging.getLogger(__name__)

_KEEPS: tuple[checks.Wish, ...] = ("network host", "user")  # and limits, where control groups can be made
_SANDBOX_KEEPS: tuple[checks.Wish, ...] = (*_KEEPS, "the image's own command")
_CONTAINER_KEEPS: tuple[checks.Wish, ...] = (*_KEEPS, "mounts", "restart policy", "stdin", "timeout", "ulimits")
_RLIMITS = frozenset(name.removeprefix("RLIMIT_").lower() for name in dir(resource) if name.startswith("RLIMIT_"))


class NativeBackend:
    """See `conveyor_runtime.orchestra.base.Backend` and `capabilities.Sandboxes`. Image and pull policy mean nothing
    here and are ignored; foreign users and networks cannot be kept and are refused, and so are limits where this
    process may make no control groups."""

    name = "native"

    def __init__(self, root: Path | None = None) -> None:
        """`root` is made if it is not there (default `layout.default_root()`). Raises `ConfigError` if it is not
        this user's alone."""
        self._root = layout.open_root(root or layout.default_root())
        self._keeping = Keeping()
        self.node = layout.node_name(self._root)
        self.storage = self._root

    async def prepare(self, task: Task, on_progress: Progress) -> Prepared:
        """Only checks: there is nothing to fetch."""
        _check(task, _CONTAINER_KEEPS if task.command else _SANDBOX_KEEPS)
        return Prepared()

    async def run(self, ns: str, task: Task, owner: Owner) -> NativeContainer:
        """See the contract."""
        _check(task, _CONTAINER_KEEPS)
        home = self._root / _checked(ns) / task.id
        if not ((home / "pid").exists() or (home / "exit").exists()):
            for volume in dict.fromkeys(mount.volume for mount in task.mounts):
                await self.create_volume(ns, volume, owner)
            await starting.start(self._root, ns, task, owner, self._keeping)
        return await self.get(ns, task.id)

    async def get(self, ns: str, task_id: str) -> NativeContainer:
        """See the contract."""
        meta = layout.read_meta(self._root / _checked(ns) / check_task_id(task_id))
        if meta is None or meta.kind != "container":
            raise Gone(f"there is no native container {task_id} in {ns}")
        kind = FreezableContainer if "freezer" in cgroups.places() else NativeContainer
        return kind(self._root, ns, task_id, meta)

    async def create_volume(self, ns: str, name: str, owner: Owner, *, size_bytes: int = 0) -> NativeVolume:
        """See the contract."""
        if size_bytes:
            raise TerminalError("the native backend cannot keep volume sizes; leave them out")
        meta = layout.Meta(owner, {}, datetime.now(UTC), kind="volume")
        place = volume_dir(check_task_id(name))
        try:
            await asyncio.to_thread(layout.make, self._root, _checked(ns), place, meta, ("data",))
        except OSError as error:
            raise BackendError(f"cannot make a volume in {self._root}: {error}") from error
        return NativeVolume(self._root, ns, name)

    async def start_sandbox(self, ns: str, task: Task, owner: Owner) -> NativeSandbox:
        """See the contract."""
        checks.check_sandbox(task)
        _check(task, _SANDBOX_KEEPS)
        meta = layout.Meta(owner, dict(task.env), datetime.now(UTC))

        def make() -> None:
            note = partial(cgroups.note, nonce=execs.new_nonce(), limits=task.limits)
            layout.make(self._root, _checked(ns), task.id, meta, layout.SANDBOX_PARTS, furnish=note)
            cgroups.ensure(self._root / ns / task.id)

        try:
            await asyncio.to_thread(make)
        except OSError as error:
            raise BackendError(f"cannot make a sandbox in {self._root}: {error}") from error
        found = layout.read_meta(self._root / ns / task.id)
        if found is not None and found.kind != "sandbox":
            raise TerminalError(f"{task.id} of {ns} is there already, as a {found.kind} and no sandbox")
        return await self.get_sandbox(ns, task.id)

    async def get_sandbox(self, ns: str, task_id: str) -> NativeSandbox:
        """See the contract."""
        home = self._root / _checked(ns) / check_task_id(task_id)
        meta = await asyncio.to_thread(layout.read_meta, home)
        if meta is None or meta.kind != "sandbox":
            raise Gone(f"there is no native sandbox {task_id} in {ns}")
        return NativeSandbox(self._root, ns, task_id, meta)

    async def close_namespace(self, ns: str, *, grace: float = 10.0) -> None:
        """See the contract."""
        everything = [Target(f"{execs.SANDBOX_MARK}={_checked(ns)}".encode())]
        try:
            everything += await asyncio.to_thread(self._doom, ns)
            await end_targets(everything, grace)
            await asyncio.to_thread(retiring.retire, self._root, ns)
            # Whoever began between the last look and the removal has lost its directory, and now its life.
            await end_targets(everything, 0)
            left = await asyncio.to_thread(self._remove_retired, ns)
        except OSError as error:
            raise BackendError(f"{ns}: cannot be removed: {error}") from error
        if left:
            raise BackendError(f"{ns}: cannot remove {', '.join(map(str, left))}")

    async def namespaces(self, installation: str) -> list[NamespaceInfo]:
        """See the contract."""
        try:
            found = await asyncio.to_thread(lambda: list(layout.namespaces(self._root)))
        except OSError as error:
            raise BackendError(f"cannot list {self._root}: {error}") from error
        infos = []
        for ns, metas, changed in found:
            if not metas:
                # Nobody can say any more whose it was but its name, and that only for runs as our engine names them.
                if run_id := run_of(installation, ns):
                    infos.append(NamespaceInfo(ns, run_id, changed))
            elif all(meta.owner.installation == installation for meta in metas):
                created_at = max(meta.created_at for meta in metas)
                infos.append(NamespaceInfo(ns, metas[0].owner.run_id, created_at, tuple(meta.owner for meta in metas)))
        return infos

    async def close(self) -> None:
        """See the contract."""
        await self._keeping.close()

    def _remove_retired(self, ns: str) -> list[Path]:
        """Also what somebody who died left of it; returns what cannot be removed."""
        found = retiring.retired(self._root, ns)
        for path in found:
            try:
                retiring.remove_retired(path)
            except BackendError as error:
                log.warning("%s", error, extra={"action": "native_not_removed"})
        return [path for path in found if path.exists()]

    def _doom(self, ns: str) -> list[Target]:
        """All that runs there, by what leads to it: finds those that emptied their environment but stayed in the
        session. No container of it is started again from here on."""
        found = []
        for place in (self._root / ns, *retiring.retired(self._root, ns)):
            for home in records.homes(place):
                cgroups.thaw(home)
                found += records.targets(home)
                if (home / "stdout").exists() and not (home / "exit").exists():
                    records.doom(home)
        return found


def _checked(ns: str) -> str:
    """A namespace names a directory below the root; nothing else may."""
    if not ns or ns.startswith(".") or "/" in ns or "\0" in ns:
        raise TerminalError(f"{ns!r} is no namespace")
    return ns


def _check(task: Task, keeps: tuple[checks.Wish, ...]) -> None:
    checks.check_task(task)
    check_user(task.user)
    checks.refuse(task, "native", [*keeps, *cgroups.kept_wishes()] if task.limits != Limits() else keeps)
    for limit in task.ulimits:
        if limit.name not in _RLIMITS:
            raise TerminalError(f"there is no ulimit {limit.name!r} on this machine")
    paths = sorted(checks.mount_path(task, mount.path) for mount in task.mounts)
    for outer, inner in combinations(paths, 2):
        if inner.startswith(f"{outer}/"):
            raise TerminalError(f"the native backend cannot mount {inner} inside of {outer}")
