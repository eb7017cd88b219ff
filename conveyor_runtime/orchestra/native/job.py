"""One container under the eyes of its keeper: its command, started, started again, ended, and written about."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from conveyor_runtime.orchestra.native import cgroups
from conveyor_runtime.orchestra.native.proc import Target, outputs_of, start_of, sweep

__all__ = ["Job", "Kept", "NotBegun"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 60.0  # seconds before a restart, doubled each time
_AGAIN = 1.0  # seconds until what could not be done (an end written, a command restarted) is tried again
_SHORT = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)
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


class NotBegun(Exception):
    """Nothing has been started, and nothing says that it has."""


class Kept:
    """A job under way. Its keeper tells it what has become of its process, and calls what is `due`."""

    def __init__(self, job: Job, lock: int) -> None:
        """`lock` is the container's directory, open and locked: that says whose it is. All goes through it, for another
        container may get the name when this one is removed."""
        self.home = Path(f"/proc/self/fd/{lock}")
        self.pid = 0
        self.finished = False
        self.is_ending = False
        self.due: tuple[float, Callable[[], None]] | None = None
        """What comes next, and when by `time.monotonic`: a restart, the timeout, SIGKILL, its end written again."""
        self._job = job
        self._lock = lock
        self._restarts = 0
        self._pause = _FIRST_PAUSE
        self._created = self._started = time.monotonic()
        self._started_at = time.time()
        self._code: int | None = None
        self._left: list[int] = []
        self._end: dict[str, Any] | None = None

    @property
    def is_doomed(self) -> bool:
        """Whether it is being ended."""
        return bool(_verdict(self.home))

    def start(self) -> None:
        """Start its command. Raises `NotBegun` if that cannot be done now; then nothing has happened."""
        self._started, self._started_at = time.monotonic(), time.time()
        with self._files() as (stdin, out, err):
            # First it is written that it begins: whoever comes after our death in between begins it no second time.
            if not self._restarts and not self._write_record(0):
                raise NotBegun("its record cannot be written")
            try:
                child = self._popen(stdin, out, err)
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                if isinstance(error, OSError) and error.errno in _SHORT and error.filename is None:  # not even forked
                    if not self._restarts:
                        with contextlib.suppress(OSError):  # removed meanwhile
                            os.unlink(self.home / "pid")
                    raise NotBegun(str(error)) from error
                with contextlib.suppress(OSError):  # a full disk
                    words = f"conveyor: cannot run {self._job.argv[0]}: {error}\n"
                    os.write(err.fileno(), words.encode(errors="replace"))
                self._code = 127 if isinstance(error, FileNotFoundError) else 126
                self._end_of_command()
                return
        child.returncode = 0  # it is not the one who waits for the child
        self.pid = child.pid
        if not self._write_record(child.pid) or self.is_doomed:
            self.sweep(signal.SIGKILL)  # removed meanwhile; or the disk is full, and what nobody knows of must not run
        if self._job.stdin:
            with contextlib.suppress(OSError):
                os.unlink(self._job.stdin)
            self._job.stdin = None  # a restarted command finds it at its end
        if self._job.timeout is not None:
            self.due = (self._created + self._job.timeout, self._time_is_over)

    def ended(self, code: int, left: list[int]) -> None:
        """Its process has ended, and nothing of it is left but what cannot be killed; `code` is as a shell has it."""
        self.pid, self.is_ending, self.due = 0, False, None
        self._code, self._left = code, left
        if left:
            words = f"conveyor: what the command has left cannot be killed: {', '.join(map(str, left))}\n"
            with contextlib.suppress(OSError), open(self.home / "stderr", "a") as err:
                err.write(words)
        self._end_of_command()

    def sweep(self, number: int) -> list[int]:
        """Signal all that belongs to it."""
        groups = tuple(cgroups.groups_of(self.home))
        target = Target(self._job.mark.encode(), self.pid, -1, groups, outputs_of(self.home))
        return sweep([target], number)

    def finish(self) -> None:
        """It is over: say how it ended. On a full disk that is tried again until there is room."""
        if self._end is None:
            verdict, oom = _verdict(self.home), cgroups.oom_kills(self.home) > 0
            found = {"code": self._code, "restarts": self._restarts, "started": self._started_at, "verdict": verdict}
            more = {"mark": self._job.mark, "left": self._left}
            self._end = {**found, **more, "oom": oom, "finished": time.time()}
        if not _write(self.home / "exit", self._end) and self._has_its_name():
            self.due = (time.monotonic() + _AGAIN, self.finish)
            return
        self.finished = True
        os.close(self._lock)

    @contextlib.contextmanager
    def _files(self) -> Iterator[tuple[IO[bytes], IO[bytes], IO[bytes]]]:
        with contextlib.ExitStack() as stack:
            try:
                stdin = stack.enter_context(open(self._job.stdin or os.devnull, "rb"))
                out = stack.enter_context(open(self.home / "stdout", "ab"))
                err = stack.enter_context(open(self.home / "stderr", "ab"))
            except OSError as error:
                raise NotBegun(str(error)) from error
            yield stdin, out, err

    def _popen(self, stdin: IO[bytes], out: IO[bytes], err: IO[bytes]) -> subprocess.Popen[bytes]:
        job, groups = self._job, cgroups.groups_of(self.home)
        return subprocess.Popen(
            job.argv,
            env=job.env,
            cwd=self.home / "workspace",
            stdin=stdin,
            stdout=out,
            stderr=err,
            start_new_session=True,
            close_fds=False,  # the lock is to be held until the command is executed; all that is open is closed by that
            preexec_fn=(lambda: _confine(job, groups)) if job.rlimits or groups else None,  # noqa: PLW1509
        )

    def _write_record(self, pid: int) -> bool:
        found = {"pid": pid, "start": start_of(pid) if pid else 0, "at": self._started_at, "mark": self._job.mark}
        keeper = {"keeper": os.getpid(), "keeper_start": start_of(os.getpid())}
        return _write(self.home / "pid", {**found, **keeper, "restarts": self._restarts})

    def _has_its_name(self) -> bool:
        """Whether it has not been removed. Another may bear the name since."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.stat(self._job.home), os.fstat(self._lock))
        return False

    def _end_of_command(self) -> None:
        job = self._job
        again = job.restart in ("always", "unless-stopped") or (
            job.restart == "on-failure"
            and self._code != 0
            and (job.max_retries == 0 or self._restarts < job.max_retries)
        )
        if not again or self.is_doomed or not self._has_its_name():
            self.finish()
            return
        if time.monotonic() - self._started > _STEADY:
            self._pause = _FIRST_PAUSE
        self._restart_in(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _restart_in(self, pause: float) -> None:
        job, restart_at = self._job, time.monotonic() + pause
        over_at = self._created + job.timeout if job.timeout is not None else None
        if over_at is not None and over_at < restart_at:
            self.due = (over_at, self._time_is_over)
        else:
            self.due = (restart_at, self._restart)

    def _restart(self) -> None:
        if not self._has_its_name():
            self.finish()
            return
        self._restarts += 1
        try:
            self.start()
        except NotBegun:
            self._restarts -= 1
            self._restart_in(_AGAIN)

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
