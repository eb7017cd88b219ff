"""The contract every backend keeps: what may be asked of a place where containers run.

A *namespace* is everything that belongs to one run on one node. A *sandbox* is one container of it, which serves
many execs and owns one workspace volume. A task's failure is a value (`ExitStatus`); a backend's failure is an
exception (`conveyor_runtime.errors.BackendError` and its children). A request that a backend cannot keep is refused
with `TerminalError` before anything starts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from conveyor_runtime.errors import TerminalError

__all__ = [
    "Backend",
    "ExecTag",
    "ExitStatus",
    "Limits",
    "Mount",
    "NamespaceInfo",
    "OnOutput",
    "Owner",
    "Progress",
    "PullPolicy",
    "Sandbox",
    "Status",
    "Stream",
    "Task",
    "check_task_id",
    "namespace",
    "run_of",
]

Stream = Literal["stdout", "stderr"]
Status = Literal["success", "error", "timeout", "killed", "cancelled"]
PullPolicy = Literal["if-not-present", "always", "never"]

OnOutput = Callable[[Stream, bytes], Awaitable[None]]
"""Takes raw bytes as they come. It is awaited before more is read, so a slow taker slows the writer down. Calls of one
exec never overlap."""

Progress = Callable[[str], Awaitable[None]]
"""Takes one line for a person to read."""

_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_MAX_TOKEN = 64
_UUID = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:_.*)?")


@dataclass(frozen=True)
class Limits:
    """Ceilings of one sandbox, all its execs together. 0 = unlimited. Memory is without swap."""

    cpu_milli: int = 0
    """Thousandths of one CPU: 1500 = one and a half."""
    memory_bytes: int = 0
    pids: int = 0
    """Processes and threads alive at once."""
    disk_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("cpu_milli", "memory_bytes", "pids", "disk_bytes"):
            if getattr(self, name) < 0:
                raise TerminalError(f"limit {name} must not be negative")


@dataclass(frozen=True)
class Mount:
    """A volume of the namespace, made when first asked for, at an absolute path inside."""

    volume: str
    path: str


@dataclass(frozen=True)
class Owner:
    """Who a sandbox belongs to; carried by everything that is created, so that a janitor can judge it later."""

    installation: str
    run_id: str
    step: str
    attempt: int
    takeover: int


@dataclass(frozen=True)
class ExecTag:
    """Which attempt an exec works for. `(attempt, takeover)` orders the execs of one step."""

    run_id: str
    step: str
    attempt: int
    takeover: int


@dataclass(frozen=True)
class Task:
    """What to start. The same id in the same namespace is the same sandbox."""

    id: str
    image: str = ""
    """Informational on `native`, which has no images."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment of every exec in the sandbox."""
    mounts: tuple[Mount, ...] = ()
    limits: Limits = Limits()
    user: str = ""
    """Name or uid, optionally `:group`; empty = the image's own."""
    workdir: str = "/workspace"
    """Absolute path inside at which the workspace volume is mounted; `native` uses a path of its own."""
    network: str = "default"
    """`default`, `none`, `host` or the name of a network the backend knows."""
    pull: PullPolicy = "if-not-present"


@dataclass(frozen=True)
class ExitStatus:
    """How an exec ended. `exit_code` is 128 + n for a process that signal n ended."""

    status: Status
    exit_code: int
    reason: str | None
    """`signal` or `oom` beside `killed`; None otherwise."""
    started_at: datetime
    finished_at: datetime

    @property
    def seconds(self) -> float:
        """How long it took, in seconds."""
        return (self.finished_at - self.started_at).total_seconds()


@dataclass(frozen=True)
class NamespaceInfo:
    """What a janitor needs to judge one namespace. `created_at` is the youngest thing in it: while something is
    still being added, a namespace is not old."""

    ns: str
    run_id: str
    created_at: datetime
    owners: tuple[Owner, ...] = ()


class Sandbox(Protocol):
    """A running container that takes execs."""

    @property
    def id(self) -> str:
        """The backend's own identifier (container id)."""

    @property
    def workspace(self) -> str:
        """Absolute path of the workspace, as execs see it."""

    async def exec(
        self,
        argv: list[str],
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        grace: float = 10.0,
        on_output: OnOutput,
        tag: ExecTag,
    ) -> ExitStatus:
        """Run `argv` and pass its output on as it comes; returns when it has ended.

        `workdir` is absolute or relative to the workspace. After `timeout` seconds, and when the caller is cancelled,
        everything the exec started gets SIGTERM, `grace` seconds later SIGKILL; the call ends only then. What it
        left in the background when it ended by itself goes on. Raises `Gone` if the sandbox was removed meanwhile,
        `BackendError` if the end cannot be learnt: that is never success.
        """

    async def end_execs(self, step: str, before: tuple[int, int], *, grace: float = 10.0) -> int:
        """End everything that execs of `step` tagged below `before` = (attempt, takeover) left running.

        Waits until they are really gone and returns how many execs that were. An exec with such a tag that has been
        asked for but has not begun yet will refuse to begin.
        """

    async def copy_in(self, source: Path, target: str) -> None:
        """Make `target` (relative to the workspace, `.` = itself) the content of the directory `source`.

        What was there goes. Symbolic links are copied as links, devices and sockets are refused, and nothing
        outside the workspace is written; the copy belongs to the sandbox's user (root unless the task names one).
        """


class Backend(Protocol):
    """A place where containers run. Objects of one process may share it; state lives in the place itself."""

    @property
    def name(self) -> str:
        """Its word in settings and specs: `docker`, `native`."""

    @property
    def node(self) -> str:
        """Names the place where the containers live; safe as a token of a bus subject."""

    async def prepare(self, task: Task, on_progress: Progress) -> None:
        """Have what the task needs, by its pull policy. Raises `ImageNotFound` (no use trying again),
        `BackendUnavailable` (it may work later), `TerminalError` (this backend cannot keep the request)."""

    async def start_sandbox(self, ns: str, task: Task, owner: Owner) -> Sandbox:
        """Start it, or return the one that runs already under this namespace and task id."""

    async def get_sandbox(self, ns: str, task_id: str) -> Sandbox:
        """The running sandbox, also from another process than started it. Raises `Gone` if there is none."""

    async def close_namespace(self, ns: str, *, grace: float = 10.0) -> None:
        """Remove all that carries the namespace, running or not. What runs gets SIGTERM and `grace` seconds.

        Nothing there is success. Goes on past single failures, then raises `BackendError` naming what remains.
        """

    async def namespaces(self, installation: str) -> list[NamespaceInfo]:
        """What exists here of one installation."""

    async def close(self) -> None:
        """Release this process's connection and threads. Containers go on."""


def namespace(installation: str, run_id: str) -> str:
    """The namespace of a run: `cv-<installation>-<run>`, at most 132 characters of `[a-z0-9_-]`.

    Different pairs give different names: an installation never contributes a `-`, and a part that had to be changed
    or cut (at 64 characters) gets 8 hex digits of its hash.
    """
    return f"cv-{_token(installation, '_')}-{_token(run_id, '-_')}"


def run_of(installation: str, ns: str) -> str | None:
    """The run a namespace's name carries, or that of the namespace it is a part of (`<namespace>_...`).

    None if it is not of this installation, or if the run's id is no UUID: another kind may have been changed or cut.
    """
    prefix = namespace(installation, "").removesuffix(_token("", "-_"))
    found = _UUID.fullmatch(ns.removeprefix(prefix)) if ns.startswith(prefix) else None
    return found.group(1) if found else None


def check_task_id(task_id: str) -> str:
    """The id itself, or `TerminalError` if it is not 1 to 63 of `[A-Za-z0-9_-]`, beginning with a letter or digit."""
    if not _TASK_ID.fullmatch(task_id):
        raise TerminalError(f"task id {task_id!r} must be 1 to 63 characters of [A-Za-z0-9_-]")
    return task_id


def _token(text: str, extra: str) -> str:
    if text and len(text) <= _MAX_TOKEN and re.fullmatch(rf"[a-z0-9][a-z0-9{extra}]*", text):
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    cleaned = re.sub(rf"[^a-z0-9{extra}]", "_", text.lower()).lstrip("_-")
    return f"{cleaned[: _MAX_TOKEN - 9] or 'x'}_{digest}"
