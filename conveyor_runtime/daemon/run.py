"""Processes as the command line starts them: loop, logging, signals, exit code."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import ExitStack
from typing import Self

from conveyor_runtime.daemon.up import Running, UpSettings, up
from conveyor_runtime.daemon.worker import run_loop
from conveyor_runtime.kit.notify import Notifier
from conveyor_runtime.kit.shutdown import on_signals
from conveyor_runtime.orchestra.registry import installed
from conveyor_runtime.security.redaction import redact_url

log = logging.getLogger(__name__)


def run_up(settings: UpSettings) -> int:
    """Run it all until a signal; the exit code. Raises ConfigError, BusError, OSError."""
    return run_loop(_up(settings))


async def _up(settings: UpSettings) -> int:
    with _Signals() as signals:
        async with signals.notifier.alive(), up(settings) as running:
            backend = _backend(running)
            if backend == "native" and settings.driver.backend == "auto":
                log.warning("no Docker engine answers: builds run on this machine without isolation")
            _say_ready(running, backend)
            await signals.wait(running)
            if running.children:
                log.info("stopping: running work is finished or handed over first; once more to hurry")
    return 0


class _Signals:
    """SIGTERM and SIGINT: while starting, the start is given up; then the first asks for the end, others to hurry."""

    def __init__(self) -> None:
        self._stop = asyncio.Event()
        self._running: Running | None = None
        self._stack = ExitStack()
        self.notifier = Notifier()

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._stack.enter_context(on_signals(self._signalled))
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> bool:
        self._stack.close()
        if self._stop.is_set():
            # Everything has ended in order: one more Ctrl-C must not make a failure of it.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        return kind is asyncio.CancelledError and self._stop.is_set()

    def _signalled(self) -> None:
        if self._running is not None and self._stop.is_set():
            self._running.hurry()
        elif self._running is None and not self._stop.is_set() and self._task is not None:
            self._task.cancel()
        self._stop.set()

    async def wait(self, running: Running) -> None:
        """Until the first signal. The service manager is told that we are ready, then that we stop."""
        self._running = running
        self.notifier.ready()
        await self._stop.wait()
        self.notifier.stopping()


def _backend(running: Running) -> str:
    """Where the drivers that were started put builds by default; empty if none of them builds."""
    names = {child.name for child in running.children}
    instances = [found.record for found in running.control.state.view.instances()]
    for instance in sorted(instances, key=lambda it: it.started_at, reverse=True):
        if instance.driver in names and not (instance.ended or instance.gone) and instance.nodes:
            kind = instance.nodes[0].partition("-")[0]
            if kind in installed().names:
                return kind
    return ""


def _say_ready(running: Running, backend: str) -> None:
    line = f"ready: API {running.api_url} NATS {redact_url(running.nats_url)}"
    print(f"{line} backend {backend}" if backend else line, flush=True)  # noqa: T201 - the one line
