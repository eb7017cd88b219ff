"""A child process that is started again when it dies, and that never outlives us."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from conveyor_runtime.kit.backoff import Backoff

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1

#: Seconds a child must have run for its next death to count as the first again.
_HEALTHY = 10.0


def end_with_parent(*pass_fds: int) -> Callable[[], None]:
    """A `preexec_fn` that has the kernel send SIGTERM to the child when the thread that started it ends. It also keeps
    all descriptors from the child but stdio and those named, which are to be given to Popen's `pass_fds` as well."""
    parent = os.getpid()
    if not sys.platform.startswith("linux"):
        return lambda: None
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            # The parent died before the kernel was told.
            os._exit(1)
        # uvloop hands down the numbers it duplicates for its children's stdio: what a child starts in its turn, and
        # what outlives it, would hold on to whatever reads our output.
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor > 2 and descriptor not in pass_fds:
                with contextlib.suppress(OSError):  # the listing's own
                    os.set_inheritable(descriptor, False)

    return prepare


async def end_of(process: asyncio.subprocess.Process, look_again: float = 30.0) -> int:
    """The exit code of a child, however long it takes."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(look_again):
                return await process.wait()
        # Seen once in thousands: the loop had missed the signal that a child has ended. At the next one it looks at all
        # of them.
        signal.raise_signal(signal.SIGCHLD)


class Child:
    """One supervised child. `run()` keeps it running until cancelled; `stop()` ends it in order."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        on_exit: Callable[[int], None] | None = None,
    ) -> None:
        """`on_exit` is called with each exit code that nobody asked for; what it raises ends `run()`."""
        self.name = name
        self._argv = list(argv)
        self._env = dict(env)
        self._on_exit = on_exit
        self._spawning = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._hurried = False

    @property
    def pid(self) -> int | None:
        """Its process id; None while there is none."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def run(self) -> None:
        """Start it, and start it again whenever it ends, with growing waits."""
        backoff = Backoff(0.2, 15.0)
        while True:
            started = time.monotonic()
            try:
                process = await self._spawn()
            except (OSError, subprocess.SubprocessError) as error:
                # No memory, no process id, no file left just now: it may go better soon.
                wait = backoff.next()
                log.error("%s cannot be started, next try in %.1f s: %s", self.name, wait, error)
                await asyncio.sleep(wait)
                continue
            code = await end_of(process) if process is not None else 0
            if self._stopping:
                await asyncio.Event().wait()
            if self._on_exit is not None:
                self._on_exit(code)
            if time.monotonic() - started > _HEALTHY:
                backoff.reset()
            wait = backoff.next()
            how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
            log.warning("%s %s and is started again in %.1f s", self.name, how, wait)
            await asyncio.sleep(wait)

    async def _spawn(self) -> asyncio.subprocess.Process | None:
        async with self._spawning:
            if self._stopping:
                return None
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                env=self._env,
                stdin=asyncio.subprocess.DEVNULL,
                # A terminal's Ctrl-C goes to a whole session; the children are told by us, once, in order.
                start_new_session=True,
                preexec_fn=end_with_parent(),
            )
            return self._process

    def hurry(self) -> None:
        """Have it end at once instead of in order, before `stop()` or meanwhile: it must take SIGINT like SIGTERM.

        The two signals together are two also for a process that has not seen the first yet; two alike would be one.
        Once is enough: a later one would only meet a process that is ending already.
        """
        if not self._hurried and self._process is not None and self._process.returncode is None:
            self._hurried = True
            self._process.send_signal(signal.SIGINT)

    async def stop(self, grace: float) -> None:
        """SIGTERM, `grace` seconds, SIGKILL."""
        self._stopping = True
        async with self._spawning:  # one that is being started just now is stopped too
            process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(grace):
                await process.wait()
        except TimeoutError:
            log.warning("%s did not end within %.0f s and is killed", self.name, grace)
            process.kill()
            await process.wait()
