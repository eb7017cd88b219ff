"""One native sandbox: execs as process trees of this machine, files in its directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from conveyor_runtime.errors import BackendError, Gone, TerminalError
from conveyor_runtime.kit.process import Child
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.orchestra import execs
from conveyor_runtime.orchestra.native import cgroups, records
from conveyor_runtime.orchestra.native.copies import Copies
from conveyor_runtime.orchestra.native.layout import Meta
from conveyor_runtime.orchestra.native.proc import Target, start_of, sweep
from conveyor_runtime.orchestra.native.removal import end_targets, remove_home
from conveyor_runtime.orchestra.native.retiring import remove_tree
from conveyor_runtime.orchestra.native.spool import spooled
from conveyor_runtime.orchestra.status import ExitStatus, OnOutput
from conveyor_runtime.orchestra.task import ExecTag, Stdin

__all__ = ["NativeSandbox", "check_user", "environment"]

# $1... control groups, --, then argv.
_ENTER = r"""
while [ "$1" != -- ]; do echo 0 > "$1/cgroup.procs" || exit 125; shift; done
shift
exec "$@"
"""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def check_user(user: str | None) -> None:
    """Raise `TerminalError` unless `user` is empty or the worker's own: becoming another is not ours to do."""
    if not user:
        return
    import getpass

    if user.split(":")[0] not in (str(os.getuid()), getpass.getuser()):
        raise TerminalError(f"the native backend runs as its own user and cannot become {user!r}; use docker")


def environment(home: Path, ns: str, env: Mapping[str, str], mark: str) -> dict[str, str]:
    """What a command sees: `env` beside the few variables it cannot do without, and what it is known by."""
    own = {"PATH": _PATH, "HOME": str(home / "home"), "TMPDIR": str(home / "tmp"), "LANG": "C.UTF-8"}
    name, _, value = mark.partition("=")
    return {**own, **env, execs.SANDBOX_MARK: ns, name: value}


class NativeSandbox:
    """See `conveyor_runtime.orchestra.base.Sandbox`."""

    def __init__(self, root: Path, ns: str, task_id: str, meta: Meta) -> None:
        self._root = root
        self._ns = ns
        self._home = root / ns / task_id
        self._meta = meta
        self._id = f"{ns}.{task_id}"

    @property
    def id(self) -> str:
        return self._id

    @property
    def workspace(self) -> str:
        return str(self._home / "workspace")

    async def exec(
        self,
        argv: list[str],
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        stdin: Stdin = b"",
        timeout: float | None = None,
        grace: float = 10.0,
        on_output: OnOutput,
        tag: ExecTag,
    ) -> ExitStatus:
        """See the contract; the user can only be the worker's own."""
        check_user(user)
        self._check_alive()
        nonce = execs.new_nonce()
        command = execs.wrap(
            argv,
            directory=str(self._home / "execs"),
            tag=execs.check_tag(tag),
            nonce=nonce,
            note=f"{tag.run_id} -",
            workdir=execs.resolve_workdir(self.workspace, workdir),
        )
        started_at = datetime.now(UTC)
        groups, oom_kills = cgroups.groups_of(self._home), cgroups.oom_kills(self._home)
        command[0] = "/bin/sh"
        if groups:
            command = ["/bin/sh", "-c", _ENTER, "sh", *groups, "--", *command]
        try:
            async with spooled(stdin, self._home / "tmp") as readable:
                child = await Child.start(
                    command,
                    env=environment(
                        self._home, self._ns, {**self._meta.env, **(env or {})}, f"{execs.EXEC_MARK}={nonce}"
                    ),
                    cwd=self._home,
                    stdin=readable,
                    on_chunk=on_output,
                )
        except OSError as error:
            self._check_alive()
            raise BackendError(f"cannot start a process: {error}") from error
        target = Target(_mark(execs.EXEC_MARK, nonce), child.pid, start_of(child.pid))
        try:
            return await self._watch(child, target, started_at, timeout, grace, oom_kills)
        finally:
            await finish(child.close())

    async def end_execs(self, step: str, before: tuple[int, int], *, grace: float = 10.0) -> int:
        """See the contract."""
        self._check_alive()
        records = await asyncio.to_thread(self._fence, step, before)
        targets = [Target(_mark(execs.EXEC_MARK, r.nonce), r.pid, r.start) for r in records]
        ended = len(await asyncio.to_thread(_alive, targets))
        if targets:
            await end_targets(targets, grace)
            await asyncio.to_thread(self._forget, records)
        return ended

    async def copy_in(self, source: Path, target: str) -> None:
        """See the contract."""
        self._check_alive()
        stop = threading.Event()
        copying = asyncio.ensure_future(asyncio.to_thread(self._copy_in, source, target, stop))
        try:
            await asyncio.shield(copying)
        except asyncio.CancelledError:
            # A thread cannot be cancelled: it is asked to stop, and nothing is said to be over before it has.
            stop.set()
            await finish(asyncio.wait([copying]))
            raise

    async def cleanup(self) -> None:
        """See the contract."""
        await remove_home(self._root, self._ns, self._home.name, self._meta)

    async def _watch(
        self,
        child: Child,
        target: Target,
        started_at: datetime,
        timeout: float | None,
        grace: float,
        oom_kills: int,
    ) -> ExitStatus:
        try:
            async with asyncio.timeout(timeout) as clock:
                code = await child.wait()
                status = execs.status_of(code, started_at, oom=cgroups.oom_kills(self._home) > oom_kills)
        except TimeoutError:
            if not clock.expired():
                raise
            await finish(end_targets([target], grace))
            code = await child.wait()
            exit_code = 128 - code if code < 0 else code
            return ExitStatus("timeout", exit_code, None, started_at, datetime.now(UTC))
        except BaseException:
            await finish(end_targets([target], grace))
            raise
        if status.status == "killed":
            self._check_alive()  # killed because somebody closed the namespace: then it says so
        return status

    def _check_alive(self) -> None:
        if not (self._home / "meta.json").exists():
            raise Gone(f"the sandbox {self._id} was removed")

    def _fence(self, step: str, before: tuple[int, int]) -> list[execs.Record]:
        """Let none of these begin any more; returns those that have."""
        directory = self._home / "execs"
        (directory / execs.fence_name(step, before)).touch()
        return [record for record in records.records(self._home) if record.is_before(step, before)]

    def _forget(self, records: list[execs.Record]) -> None:
        for record in records:
            (self._home / "execs" / record.name).unlink(missing_ok=True)

    def _copy_in(self, source: Path, target: str, stop: threading.Event) -> None:
        workspace = Path(self.workspace).resolve()
        relative = execs.resolve_target(target)
        destination = workspace / relative
        # A link that a build left in the workspace must not lead the copy, or the removal, out of it.
        if relative != "." and not destination.parent.resolve().is_relative_to(workspace):
            raise TerminalError(f"{target!r} leads out of the workspace")
        copies = Copies(self._home)

        def copy(one: str, other: str) -> None:
            if stop.is_set():
                raise BackendError(f"the copy into {self._id} was given up")
            _copy_file(one, other)

        draft, old = (self._home / f"tmp/.{name}-{secrets.token_hex(8)}" for name in ("copy", "old"))
        try:
            nonce = copies.begin(relative)
            shutil.copytree(source, draft, symlinks=True, copy_function=copy)
            if stop.is_set():
                return
            if relative == ".":
                draft.chmod(0o700)  # as it was made
            with copies.turn(nonce):
                destination.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    destination.rename(old)
                draft.rename(destination)
        except OSError as error:
            self._check_alive()
            raise BackendError(f"cannot copy into the workspace: {error}") from error
        finally:
            _remove(old)
            remove_tree(draft)


def _alive(targets: list[Target]) -> list[Target]:
    return [target for target in targets if sweep([target], 0)]


def _mark(name: str, value: str) -> bytes:
    return f"{name}={value}".encode()


def _copy_file(source: str, target: str) -> None:
    mode = os.lstat(source).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise TerminalError(f"{source} is neither a file, a directory nor a link")
    shutil.copy2(source, target, follow_symlinks=False)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)
