"""The process that stays with native containers: it starts their commands, restarts them, ends them when their time is
over, and writes down how they ended. It outlives the worker that started it, so that nothing of this is lost when that
worker dies, and ends by itself when the worker is gone and no container is left.

A worker starts one as `python -m conveyor_runtime.orchestra.native.keeper <descriptor>` when it first needs it, and
sends it jobs over that socket, one JSON object per line; each is answered by one line, `ok` or `taken`. Which keeper
has a container is settled by a lock on a file in the container's directory, held as long as the keeper lives.

Single-threaded and without an event loop: it forks.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conveyor_runtime.orchestra.native.proc import Target, start_of, sweep

__all__ = ["Job", "main"]

_PR_SET_CHILD_SUBREAPER = 36
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 60.0  # seconds before a restart, doubled each time
_STEADY = 10.0  # seconds a command must have run for its pauses to begin anew


@dataclass
class Job:
    """One container. Times are of `time.time`, in seconds; `home` is its directory."""

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
    cgroups: list[str] = field(default_factory=list)


class _Kept:
    """A job under way."""

    def __init__(self, job: Job, lock: int) -> None:
        self.job = job
        self.home = Path(job.home)
        self.lock = lock
        self.pid = 0
        self.restarts = 0
        self.pause = _FIRST_PAUSE
        self.created = time.time()
        self.started = self.created
        self.code = 0
        # What is due next, and when: the restart, the timeout, its SIGKILL.
        self.due: tuple[float, Callable[[], None]] | None = None


class Keeper:
    """The loop and what it looks after."""

    def __init__(self, control: socket.socket) -> None:
        self._control: socket.socket | None = control
        self._input = b""
        self._kept: list[_Kept] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake = wake_read
        self._selector.register(wake_read, selectors.EVENT_READ)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        # Taken and dropped, not ignored: commands would inherit that.
        for number in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    def run(self) -> None:
        """Until nobody sends jobs and none is left."""
        while self._control is not None or self._kept:
            for key, _ in self._selector.select(self._patience()):
                if key.fileobj is self._control:
                    self._listen()
                else:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 4096)
            self._reap()
            now = time.time()
            for kept in list(self._kept):
                if kept.pid == 0 and _verdict(kept.home):  # stopped while it waited to be started again
                    self._finish(kept)
                elif kept.due is not None and kept.due[0] <= now:
                    action, kept.due = kept.due[1], None
                    action()

    def _patience(self) -> float | None:
        due = [kept.due[0] for kept in self._kept if kept.due is not None]
        return max(0.0, min(due) - time.time()) if due else None

    def _listen(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(self._control)
            self._control.close()
            self._control = None
            return
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            answer = self._take(Job(**json.loads(line)))
            with contextlib.suppress(OSError):  # nobody waits for it any more
                self._control.sendall(answer)

    def _take(self, job: Job) -> bytes:
        try:
            lock = os.open(f"{job.home}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:  # removed meanwhile
            return b"taken\n"
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return b"taken\n"
        if any(os.path.exists(f"{job.home}/{name}") for name in ("pid", "exit")):
            os.close(lock)
            return b"taken\n"
        kept = _Kept(job, lock)
        self._kept.append(kept)
        self._start(kept)
        return b"ok\n"

    def _start(self, kept: _Kept) -> None:
        job = kept.job
        kept.started = time.time()
        with contextlib.ExitStack() as stack:
            try:
                stdin = stack.enter_context(open(job.stdin or os.devnull, "rb"))
                out = stack.enter_context(open(f"{job.home}/stdout", "ab"))
                err = stack.enter_context(open(f"{job.home}/stderr", "ab"))
                if job.stdin:
                    os.unlink(job.stdin)
                    job.stdin = None  # a restarted command finds it at its end
            except OSError:  # removed meanwhile
                self._finish(kept)
                return
            try:
                child = subprocess.Popen(
                    job.argv,
                    env=job.env,
                    cwd=f"{job.home}/workspace",
                    stdin=stdin,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                    preexec_fn=(lambda: _confine(job)) if job.rlimits or job.cgroups else None,  # noqa: PLW1509
                )
            except (OSError, subprocess.SubprocessError) as error:
                err.write(f"conveyor: cannot run {job.argv[0]}: {error}\n".encode())
                kept.code = 127 if isinstance(error, FileNotFoundError) else 126
                self._end_of_command(kept)
                return
        child.returncode = 0  # it is not the one who waits for the child
        kept.pid = child.pid
        found = {"pid": child.pid, "start": start_of(child.pid), "at": kept.started, "mark": job.mark}
        keeper = {"keeper": os.getpid(), "keeper_start": start_of(os.getpid())}
        if not _write(kept.home / "pid", {**found, **keeper, "restarts": kept.restarts}):
            self._sweep(kept, signal.SIGKILL)  # removed meanwhile
        if job.timeout is not None:
            kept.due = (kept.created + job.timeout, lambda: self._time_is_over(kept))

    def _reap(self) -> None:
        """Take in every child that has ended: commands of jobs, and orphans that fell to us."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            kept = next((kept for kept in self._kept if kept.pid == found.si_pid), None)
            if kept is not None:
                # While it is not reaped, its number is surely its own, and so is the session of that number.
                self._end_leftovers(kept)
                kept.code = found.si_status if found.si_code == os.CLD_EXITED else 128 + found.si_status
            os.waitpid(found.si_pid, 0)
            if kept is not None:
                kept.pid = 0
                self._end_of_command(kept)

    def _end_of_command(self, kept: _Kept) -> None:
        job = kept.job
        again = job.restart in ("always", "unless-stopped") or (
            job.restart == "on-failure" and kept.code != 0 and (job.max_retries == 0 or kept.restarts < job.max_retries)
        )
        if not again or _verdict(kept.home) or not kept.home.exists():
            self._finish(kept)
            return
        if time.time() - kept.started > _STEADY:
            kept.pause = _FIRST_PAUSE
        restart_at = time.time() + kept.pause
        kept.pause = min(2 * kept.pause, _LONGEST_PAUSE)
        over_at = kept.created + job.timeout if job.timeout is not None else None
        if over_at is not None and over_at < restart_at:
            kept.due = (over_at, lambda: self._time_is_over(kept))
        else:
            kept.due = (restart_at, lambda: self._restart(kept))

    def _restart(self, kept: _Kept) -> None:
        kept.restarts += 1
        self._start(kept)

    def _time_is_over(self, kept: _Kept) -> None:
        with contextlib.suppress(OSError):
            os.close(os.open(kept.home / "timeout", os.O_CREAT | os.O_WRONLY, 0o600))
        if not kept.pid:
            self._finish(kept)
            return
        self._sweep(kept, signal.SIGTERM)
        kept.due = (time.time() + kept.job.grace, lambda: self._kill(kept))

    def _kill(self, kept: _Kept) -> None:
        self._sweep(kept, signal.SIGKILL)
        kept.due = (time.time() + 0.2, lambda: self._kill(kept))  # what is killed may just have forked

    def _sweep(self, kept: _Kept, number: int) -> list[int]:
        return sweep([Target(kept.job.mark.encode(), kept.pid, -1)], number)

    def _end_leftovers(self, kept: _Kept) -> None:
        """What the command started and left behind is our child by now, or a descendant of one that is."""
        own = {other.pid for other in self._kept}
        while any(pid not in own for pid in _children()):
            if not self._sweep(kept, signal.SIGKILL):
                break
            time.sleep(0.002)
        if len(self._kept) == 1:
            # Nobody else can it belong to, whatever it has done to hide.
            for pid in _children():
                if pid not in own:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _finish(self, kept: _Kept) -> None:
        self._kept.remove(kept)
        verdict = _verdict(kept.home)
        found = {"code": kept.code, "restarts": kept.restarts, "started": kept.started, "verdict": verdict}
        _write(kept.home / "exit", {**found, "oom": _oom_kills(kept.job.cgroups) > 0, "finished": time.time()})
        os.close(kept.lock)
        for path in kept.job.cgroups:
            with contextlib.suppress(OSError):
                os.rmdir(path)


def _confine(job: Job) -> None:
    """In the child, before its command: enter the cgroups, lower the limits."""
    for path in job.cgroups:
        with open(f"{path}/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))
    for name, (soft, hard) in job.rlimits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (soft, hard))


def _oom_kills(cgroups: list[str]) -> int:
    for path in cgroups:
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError), open(f"{path}/{name}") as file:
                for line in file:
                    key, _, value = line.partition(" ")
                    if key == "oom_kill":
                        return int(value)
    return 0


def _verdict(home: Path) -> str:
    """Why it is being ended, if it is."""
    return next((name for name in ("cancelled", "timeout") if (home / name).exists()), "")


def _write(file: Path, found: dict[str, Any]) -> bool:
    """Whole or not at all; False if its directory is gone."""
    draft = file.with_name(f".{file.name}")
    try:
        draft.write_text(json.dumps(found))
        draft.rename(file)
    except OSError:
        return False
    return True


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def main() -> None:
    """Serve the socket whose descriptor is the only argument."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    Keeper(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
