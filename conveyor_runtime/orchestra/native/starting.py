"""Making a native container and having a keeper start it."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from conveyor_runtime.errors import BackendError, TerminalError
from conveyor_runtime.orchestra import checks, execs
from conveyor_runtime.orchestra.native import cgroups, layout, records
from conveyor_runtime.orchestra.native.job import Job
from conveyor_runtime.orchestra.native.keeping import Keeping
from conveyor_runtime.orchestra.native.sandbox import environment
from conveyor_runtime.orchestra.native.spool import spool
from conveyor_runtime.orchestra.native.volume import volume_dir
from conveyor_runtime.orchestra.task import Owner, Task

__all__ = ["start"]

_PARTS = ("workspace", "home", "tmp")
_PATIENCE = 10.0  # seconds for another process to start what it has begun to


async def start(root: Path, ns: str, task: Task, owner: Owner, keeping: Keeping) -> None:
    """Start the container of this name, or see it started by somebody else. Its volumes are there already.

    Raises `BackendError`; then it is made at most, and may be asked for again.
    """
    home = root / ns / task.id
    starting = records.starting_name()
    stdin = home / f".stdin-{secrets.token_hex(8)}" if task.stdin != b"" else None
    try:
        try:
            # A few small calls: a thread would cost more than they do.
            if not _make(root, ns, task, owner, starting):
                (home / starting).touch(mode=0o600)
            if stdin is not None:
                await spool(task.stdin, stdin)
        except OSError as error:
            raise BackendError(f"cannot make a container in {root}: {error}") from error
        meta = layout.read_meta(home)
        if meta is None or meta.kind != "container":
            raise TerminalError(f"{task.id} of {ns} is no container, or was removed at once")
        cgroups.ensure(home)
        if not await keeping.keep(_job(home, ns, task, meta.mark, stdin)):
            if stdin is not None:
                _remove(stdin)
            await _until_started(home)
    finally:
        _remove(home / starting)


def _make(root: Path, ns: str, task: Task, owner: Owner, starting: str) -> bool:
    mark = f"{execs.EXEC_MARK}={execs.new_nonce()}"
    volumes = tuple(dict.fromkeys(mount.volume for mount in task.mounts))
    meta = layout.Meta(owner, dict(task.env), datetime.now(UTC), "container", mark, volumes)
    links = [
        (f"workspace/{checks.mount_path(replace(task, workdir='/'), mount.path)[1:]}", mount.volume)
        for mount in task.mounts
    ]

    def furnish(draft: Path) -> None:
        for name in ("stdout", "stderr", starting):
            (draft / name).touch(mode=0o600)
        for path, volume in links:
            link = draft / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(root / ns / volume_dir(volume) / "data")
        cgroups.note(draft, meta.nonce, task.limits)

    return layout.make(root, ns, task.id, meta, _PARTS, durable=False, furnish=furnish)


def _job(home: Path, ns: str, task: Task, mark: str, stdin: Path | None) -> Job:
    return Job(
        home=str(home),
        argv=list(task.command),
        env=environment(home, ns, task.env, mark),
        mark=mark,
        stdin=str(stdin) if stdin else None,
        timeout=task.timeout,
        grace=task.grace,
        restart=task.restart.name,
        max_retries=task.restart.max_retries,
        rlimits={limit.name: (limit.soft, limit.hard) for limit in task.ulimits},
    )


async def _until_started(home: Path) -> None:
    """Another process is in charge of it."""
    try:
        async with asyncio.timeout(_PATIENCE):
            while records.waits_for_start(home):  # noqa: ASYNC110 - there is nothing to be told by
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise BackendError(f"the container {home.name} was not started by who had begun to") from None


def _remove(file: Path) -> None:
    with suppress(OSError):  # the container may be gone
        file.unlink()
