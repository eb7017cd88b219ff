"""The native backend: namespaces as directories, found again by any process with the same root."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from conveyor_runtime.errors import BackendError, Gone, TerminalError
from conveyor_runtime.orchestra import execs
from conveyor_runtime.orchestra.base import Container, Prepared, Progress, Volume
from conveyor_runtime.orchestra.names import check_task_id, run_of
from conveyor_runtime.orchestra.native import layout
from conveyor_runtime.orchestra.native.proc import Target
from conveyor_runtime.orchestra.native.sandbox import NativeSandbox, check_user, end_targets
from conveyor_runtime.orchestra.status import NamespaceInfo
from conveyor_runtime.orchestra.task import Owner, Task

__all__ = ["NativeBackend"]


class NativeBackend:
    """See `conveyor_runtime.orchestra.base.Backend`. Image and pull policy mean nothing here and are ignored;
    limits, foreign users, mounts and networks cannot be kept and are refused."""

    name = "native"

    def __init__(self, root: Path | None = None) -> None:
        """`root` is made if it is not there (default `layout.default_root()`). Raises `ConfigError` if it is not
        this user's alone."""
        self._root = layout.open_root(root or layout.default_root())
        self.node = layout.node_name(self._root)

    async def prepare(self, task: Task, on_progress: Progress) -> Prepared:
        """Only checks: there is nothing to fetch."""
        _check(task)
        return Prepared()

    async def start_sandbox(self, ns: str, task: Task, owner: Owner) -> NativeSandbox:
        """See the contract."""
        _check(task)
        meta = layout.Meta(owner, dict(task.env), datetime.now(UTC))
        try:
            await asyncio.to_thread(layout.make_sandbox, self._root, _checked(ns), task.id, meta)
        except OSError as error:
            raise BackendError(f"cannot make a sandbox in {self._root}: {error}") from error
        return await self.get_sandbox(ns, task.id)

    async def get_sandbox(self, ns: str, task_id: str) -> NativeSandbox:
        """See the contract."""
        home = self._root / _checked(ns) / check_task_id(task_id)
        meta = await asyncio.to_thread(layout.read_meta, home)
        if meta is None:
            raise Gone(f"there is no native sandbox {task_id} in {ns}")
        return NativeSandbox(self._root, ns, task_id, meta)

    async def run(self, ns: str, task: Task, owner: Owner) -> Container:
        """Not yet."""
        raise TerminalError("this backend runs sandboxes only")

    async def get(self, ns: str, task_id: str) -> Container:
        """Not yet."""
        raise Gone(f"there is no container {task_id} in {ns}")

    async def create_volume(self, ns: str, name: str, owner: Owner, *, size_bytes: int = 0) -> Volume:
        """Not yet."""
        raise TerminalError("this backend runs sandboxes only")

    async def close_namespace(self, ns: str, *, grace: float = 10.0) -> None:
        """See the contract."""
        everything = [Target(f"{execs.SANDBOX_MARK}={_checked(ns)}".encode())]
        try:
            everything += await asyncio.to_thread(self._recorded, ns)
            await end_targets(everything, grace)
            await asyncio.to_thread(layout.retire, self._root, ns)
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
        """Nothing is held."""

    def _remove_retired(self, ns: str) -> list[Path]:
        """Also what somebody who died left of it; returns what cannot be removed."""
        found = layout.retired(self._root, ns)
        for path in found:
            layout.remove_tree(path)
        return [path for path in found if path.exists()]

    def _recorded(self, ns: str) -> list[Target]:
        """The leaders of all execs: finds children that emptied their environment but stayed in the session."""
        places = [self._root / ns, *layout.retired(self._root, ns)]
        records = [execs.Record.parse(path.name) for place in places for path in place.glob("*/execs/*")]
        return [Target(f"{execs.EXEC_MARK}={r.nonce}".encode(), r.pid, r.start) for r in records if r]


def _checked(ns: str) -> str:
    """A namespace names a directory below the root; nothing else may."""
    if not ns or ns.startswith(".") or "/" in ns or "\0" in ns:
        raise TerminalError(f"{ns!r} is no namespace")
    return ns


def _check(task: Task) -> None:
    check_task_id(task.id)
    check_user(task.user)
    limits = task.limits
    asked = [name for name in ("cpu_milli", "memory_bytes", "pids", "disk_bytes") if getattr(limits, name)]
    if asked:
        raise TerminalError(
            f"the native backend cannot keep limits ({', '.join(asked)}); use docker, or leave them out"
        )
    if task.mounts:
        raise TerminalError("the native backend has no volumes beside the workspace; use docker")
    if task.network not in ("default", "host"):
        raise TerminalError(
            f"the native backend shares the host's network and cannot give {task.network!r}; use docker"
        )
