"""One container under the eyes of its keeper: its command, started, started again, ended, and written about."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conveyor_runtime.orchestra.native import cgroups
from conveyor_runtime.orchestra.native.proc import Target, start_of, sweep

__all__ = ["Job", "Kept"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 60.0  # seconds before a restart, doubled each time
_AGAIN = 1.0  # seconds until an end that could not be written is written again
_STEADY = 10.0  # seconds a command must have run for its pauses to begin anew


@dataclass
class Job:
    """One container. Times are in seconds; `home` is its directory."""

    home: str
    argv: list[str]
    env: dict[str, str]
    mark: str
    stdin: str | None = None
    timeout: float | None = None
    grace: float = 10.0
    restart: str = "no"
    max_retries: int = 0
    rlimits: dict[str, tuple[int, int]] = field(default_factory=dict)


class Kept:
    """A job under way. Its keeper tells it what has become of its process, and calls what is `due`."""

    def __init__(self, job: Job, lock: int) -> None:
        """`lock` is the descriptor that says whose it is."""
        self.home = Path(job.home)
        self.pid = 0
        self.finished = False
        self.due: tuple[float, Callable[[], None]] | None = None
        """What comes next, and when by `time.monotonic`: a restart, the timeout, SIGKILL, its end written again."""
        self._job = job
        self._lock = lock
        self._restarts = 0
        self._pause = _FIRST_PAUSE
        self._created = self._started = time.monotonic()
        self._started_at = time.time()
        self._code = 0
        self._end: dict[str, Any] | None = None

    @property
    def is_doomed(self) -> bool:
        """Whether it is being ended."""
        return bool(_verdict(self.home))

    def start(self) -> None:
        """Start its command."""
        job = self._job
        self._started, self._started_at = time.monotonic(), time.time()
        with contextlib.ExitStack() as stack:
            try:
                stdin = stack.enter_context(open(job.stdin or os.devnull, "rb"))
                out = stack.enter_context(open(f"{job.home}/stdout", "ab"))
                err = stack.enter_context(open(f"{job.home}/stderr", "ab"))
                if job.stdin:
                    os.unlink(job.stdin)
                    job.stdin = None  # a restarted command finds it at its end
            except OSError:  # removed meanwhile
                self.finish()
                return
            groups = cgroups.groups_of(self.home)
            try:
                child = subprocess.Popen(
                    job.argv,
                    env=job.env,
                    cwd=f"{job.home}/workspace",
                    stdin=stdin,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                    preexec_fn=(lambda: _confine(job, groups)) if job.rlimits or groups else None,  # noqa: PLW1509
                )
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                with contextlib.suppress(OSError):  # a full disk
                    os.write(err.fileno(), f"conveyor: cannot run {job.argv[0]}: {error}\n".encode(errors="replace"))
                self._code = 127 if isinstance(error, FileNotFoundError) else 126
                self._end_of_command()
                return
        child.returncode = 0  # it is not the one who waits for the child
        self.pid = child.pid
        found = {"pid": child.pid, "start": start_of(child.pid), "at": self._started_at, "mark": job.mark}
        keeper = {"keeper": os.getpid(), "keeper_start": start_of(os.getpid())}
        if not _write(self.home / "pid", {**found, **keeper, "restarts": self._restarts}):
            self.sweep(signal.SIGKILL)  # removed meanwhile; or the disk is full, and what nobody knows of must not run
        if job.timeout is not None:
            self.due = (self._created + job.timeout, self._time_is_over)

    def ended(self, code: int) -> None:
        """Its process has ended, and nothing of it is left; `code` is as a shell has it."""
        self.pid = 0
        self._code = code
        self._end_of_command()

    def sweep(self, number: int) -> list[int]:
        """Signal all that belongs to it."""
        groups = tuple(cgroups.groups_of(self.home))
        return sweep([Target(self._job.mark.encode(), self.pid, -1, groups)], number)

    def finish(self) -> None:
        """It is over: say how it ended. On a full disk that is tried again until there is room."""
        if self._end is None:
            verdict, oom = _verdict(self.home), cgroups.oom_kills(self.home) > 0
            found = {"code": self._code, "restarts": self._restarts, "started": self._started_at, "verdict": verdict}
            self._end = {**found, "oom": oom, "finished": time.time()}
        if not _write(self.home / "exit", self._end) and self.home.exists():
            self.due = (time.monotonic() + _AGAIN, self.finish)
            return
        self.finished = True
        os.close(self._lock)

    def _end_of_command(self) -> None:
        job = self._job
        again = job.restart in ("always", "unless-stopped") or (
            job.restart == "on-failure"
            and self._code != 0
            and (job.max_retries == 0 or self._restarts < job.max_retries)
        )
        if not again or self.is_doomed or not self.home.exists():
            self.finish()
            return
        if time.monotonic() - self._started > _STEADY:
            self._pause = _FIRST_PAUSE
        restart_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        over_at = self._created + job.timeout if job.timeout is not None else None
        if over_at is not None and over_at < restart_at:
            self.due = (over_at, self._time_is_over)
        else:
            self.due = (restart_at, self._restart)

    def _restart(self) -> None:
        self._restarts += 1
        self.start()

    def _time_is_over(self) -> None:
        with contextlib.suppress(OSError):
            os.close(os.open(self.home / "timeout", os.O_CREAT | os.O_WRONLY, 0o600))
        if not self.pid:
            self.finish()
            return
        cgroups.thaw(self.home)
        self.sweep(signal.SIGTERM)
        self.due = (time.monotonic() + self._job.grace, self._kill)

    def _kill(self) -> None:
        self.sweep(signal.SIGKILL)
        self.due = (time.monotonic() + 0.2, self._kill)  # what is killed may just have forked


def _confine(job: Job, groups: Sequence[str]) -> None:
    """In the child, before its command: enter the control groups, lower the limits."""
    cgroups.enter(groups, os.getpid())
    for name, (soft, hard) in job.rlimits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (soft, hard))


def _verdict(home: Path) -> str:
    """Why it is being ended, if it is."""
    return next((name for name in ("cancelled", "timeout") if (home / name).exists()), "")


def _write(file: Path, found: dict[str, Any]) -> bool:
    """Whole or not at all; False if its directory is gone or the disk full."""
    draft = file.with_name(f".{file.name}")
    try:
        draft.write_text(json.dumps(found))
        draft.rename(file)
    except OSError:
        return False
    return True
