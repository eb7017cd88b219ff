"""Processes as the command line starts them: loop, logging, signals, exit code."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from conveyor_runtime.config import ApiSettings, BusSettings
from conveyor_runtime.daemon.connect import connect
from conveyor_runtime.daemon.control import control_plane
from conveyor_runtime.daemon.soundness import sound_store
from conveyor_runtime.daemon.up import Running, UpSettings, bus_url, register_shipped, up
from conveyor_runtime.daemon.worker import run_loop
from conveyor_runtime.kit.notify import Notifier
from conveyor_runtime.kit.shutdown import on_signals
from conveyor_runtime.orchestra.registry import installed
from conveyor_runtime.security.redaction import redact_url

log = logging.getLogger(__name__)

#: In the data directory, always: what `--ready-file` writes elsewhere. Driver commands look for it.
READY_FILE = "ready.json"


def run_serve(bus: BusSettings, api: ApiSettings, ready_file: Path | None) -> int:
    """Run API and engine until a signal; the exit code. Raises ConfigError, BusError."""
    return run_loop(_serve(bus, api, ready_file))


def run_up(settings: UpSettings) -> int:
    """Run everything until a signal; the exit code. Raises ConfigError, BusError."""
    return run_loop(_up(settings))


async def _serve(bus_settings: BusSettings, api: ApiSettings, ready_file: Path | None) -> int:
    async with AsyncExitStack() as stack:
        signals = stack.enter_context(_Signals())
        await stack.enter_async_context(signals.notifier.alive())
        url, disk_is_full = await stack.enter_async_context(bus_url(bus_settings))
        bus = await connect(url, name="conveyor-control", patience=30.0, replicas=bus_settings.replicas)
        stack.push_async_callback(bus.close)
        await stack.enter_async_context(sound_store(bus, bus_settings))
        control = await stack.enter_async_context(control_plane(bus, api, disk_is_full))
        # An operator's own version of what ships is not written over by every process that starts.
        await register_shipped(control, renew=False)
        running = Running(control.url, url, api.token, control)
        if ready_file is not None:
            running.write(ready_file)
            stack.callback(ready_file.unlink, missing_ok=True)
        stack.enter_context(_told_in(bus_settings.data_dir, running))
        _say_ready(running)
        await signals.wait(running)
    return 0


async def _up(settings: UpSettings) -> int:
    with _Signals() as signals:
        async with signals.notifier.alive(), up(settings) as running:
            backend = _backend(running)
            if backend == "native" and settings.driver.backend == "auto":
                log.warning("no Docker engine answers: builds run on this machine without isolation")
            with _told_in(settings.bus.data_dir, running):
                _say_ready(running, backend)
                await signals.wait(running)
                log.info("stopping: running work is finished or handed over first; once more to hurry")
    return 0


@contextmanager
def _told_in(folder: Path, running: Running) -> Iterator[None]:
    """The addresses in `folder` for as long as the block lasts: for commands that are run where `up` was."""
    path = folder / READY_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        running.write(path)
        told = path.read_bytes()
    except OSError as error:  # with a bus elsewhere, nothing else needs the folder
        log.warning("%s cannot be written: %s; driver commands need --nats-url then", path, error.strerror or error)
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            if path.read_bytes() == told:  # another `serve` may have told its own meanwhile
                path.unlink()


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


def _say_ready(running: Running, backend: str = "") -> None:
    line = f"ready: API {running.api_url} NATS {redact_url(running.nats_url)}"
    print(f"{line} backend {backend}" if backend else line, flush=True)  # noqa: T201 - the one line
