"""The process that stays with native containers: it starts their commands, restarts them, ends them when their time is
over, and writes down how they ended. It outlives the worker that started it, so that nothing of this is lost when that
worker dies, and ends by itself when the worker is gone and no container is left.

A worker starts one as `python -m conveyor_runtime.orchestra.native.keeper <descriptor>` when it first needs it, and
sends it jobs over that socket, one JSON object per line; each is answered by one line: `ok`, `taken`, or why it was not
begun. Which keeper has a container is settled by a lock on the container's directory, held as long as the keeper lives,
and whether it was begun by the record in it, written before: a keeper that dies in between leaves a container that is
lost, and never one that runs twice.

Single-threaded and without an event loop: it forks.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import time
from functools import partial

from conveyor_runtime.orchestra.native.job import Job, Kept, NotBegun

__all__ = ["main"]

_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 2.0  # seconds for what is killed to end: another user's never does, and what hangs in the kernel
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.2  # seconds between looks at it


class Keeper:
    """The loop and what it looks after."""

    def __init__(self, control: socket.socket) -> None:
        self._control: socket.socket | None = control
        self._input = b""
        self._kept: list[Kept] = []
        # Open from the beginning: without a descriptor to spare it must still see to what it has.
        self._children = open(f"/proc/self/task/{os.getpid()}/children", "rb", 0)  # noqa: SIM115
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
            now = time.monotonic()
            for kept in list(self._kept):
                if kept.pid == 0 and kept.is_doomed:  # stopped while it waited to be started again
                    kept.finish()
                elif kept.due is not None and kept.due[0] <= now:
                    action, kept.due = kept.due[1], None
                    action()
            self._forget_finished()

    def _patience(self) -> float | None:
        due = [kept.due[0] for kept in self._kept if kept.due is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

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
            lock = os.open(job.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # removed meanwhile
            return b"taken\n"
        except OSError as error:
            return f"{error}\n".encode()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return b"taken\n"
        kept = Kept(job, lock)
        if any((kept.home / name).exists() for name in ("pid", "exit")):
            os.close(lock)
            return b"taken\n"
        try:
            if kept.is_doomed:
                kept.finish()  # stopped before it was started
            else:
                kept.start()
        except NotBegun as error:
            os.close(lock)
            return f"{error}\n".encode()
        self._kept.append(kept)
        self._forget_finished()
        return b"ok\n"

    def _reap(self) -> None:
        """Take in every child that has ended: commands of jobs, and orphans that fell to us."""
        for kept in list(self._kept):
            if kept.pid == 0 or kept.is_ending:
                continue
            # While it is not reaped, its number is surely its own, and so is the session of that number.
            if os.waitid(os.P_PID, kept.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                kept.is_ending = True
                self._end_leftovers(kept, time.monotonic() + _PATIENCE, _FIRST_PAUSE)
        for pid in self._orphans():
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        self._forget_finished()

    def _forget_finished(self) -> None:
        self._kept = [kept for kept in self._kept if not kept.finished]

    def _end_leftovers(self, kept: Kept, until: float, pause: float) -> None:
        """What the command started and left behind is our child by now, or a descendant of one that is. Others are
        not to wait for it: what does not end at once is looked at again, and given up at last."""
        left = kept.sweep(signal.SIGKILL) if self._orphans() else []
        if left and time.monotonic() < until:
            again = partial(self._end_leftovers, kept, until, min(2 * pause, _LONGEST_PAUSE))
            kept.due = (time.monotonic() + pause, again)
            return
        if len(self._kept) == 1:
            # Nobody else can it belong to, whatever it has done to hide.
            for pid in self._orphans():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        found = os.waitid(os.P_PID, kept.pid, os.WEXITED)
        assert found is not None
        kept.ended(found.si_status if found.si_code == os.CLD_EXITED else 128 + found.si_status, left)

    def _orphans(self) -> list[int]:
        own = {kept.pid for kept in self._kept}
        self._children.seek(0)
        return [pid for pid in map(int, self._children.read().split()) if pid not in own]


def main() -> None:
    """Serve the socket whose descriptor is the only argument."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)  # commands are to have nothing of ours
    Keeper(control).run()


if __name__ == "__main__":
    main()
