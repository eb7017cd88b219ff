"""The control plane: API and engine in one process, on one connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import uvicorn

from conveyor_runtime.api import Services, create_app
from conveyor_runtime.bus import Bus, Committer, Puller, Slots, subjects
from conveyor_runtime.bus.guard import guard_streams
from conveyor_runtime.bus.streams import MESSAGES, RESULTS
from conveyor_runtime.config import ApiSettings
from conveyor_runtime.engine import Engine, Intake, intray
from conveyor_runtime.engine.purge import Purge
from conveyor_runtime.engine.sweep import Sweep
from conveyor_runtime.errors import ConfigError
from conveyor_runtime.kit.supervisor import supervise
from conveyor_runtime.store import LogStore, State
from conveyor_runtime.store.integrity import watch_epoch
from conveyor_runtime.telemetry import metrics

#: Results in hand at once; the engine works on as many runs at a time.
_SLOTS = 1024


@dataclass
class Control:
    """A running control plane."""

    url: str
    services: Services
    _stop: asyncio.Event

    @property
    def state(self) -> State:
        """Its state."""
        return self.services.state


@asynccontextmanager
async def control_plane(
    bus: Bus, state: State, settings: ApiSettings, disk_is_full: Callable[[], bool] = lambda: False
) -> AsyncIterator[Control]:
    """API and engine for as long as the block lasts, which a part that fails ends with its exception.

    Raises ConfigError if the address cannot be bound.
    """
    with _listen(settings) as listener:
        messages = Committer(bus, MESSAGES)
        metrics.observe_committer(MESSAGES, messages.stats)
        view = state.view

        make_consumer = partial(intray.make_consumer, bus)
        await make_consumer()
        await state.ensure_meta()
        await view.start()
        results = Puller(bus, RESULTS, subjects.RESULT_CONSUMER, Slots(_SLOTS), on_missing=make_consumer)
        engine = Engine(state, bus, messages, results)
        stop, missing = asyncio.Event(), set[str]()
        services = Services(
            state=state,
            engine=engine,
            intake=Intake(engine),
            logs=LogStore(bus),
            bus=bus,
            ready=lambda: _ready(bus, stop, missing),
            disk_is_full=disk_is_full,
        )
        metrics.BUS_CONNECTED.set_function(lambda: float(bus.connected))
        metrics.RUNS_LIVE.set_function(lambda: float(len(view.live_runs)))
        server = _server(services, settings)
        host, port = listener.getsockname()[:2]
        work = {
            "engine": engine.run(),
            "liveness": engine.liveness.run(),
            "foreign drivers": engine.foreign.run(),
            "sweep": Sweep(engine, bus).run(),
            "purge": Purge(engine.transitions, bus).run(),
            "view": view.wait_failed(),
            "epoch": watch_epoch(bus, state),
            "streams": guard_streams(bus, missing),
        }
        parts = asyncio.create_task(supervise(work, stop), name="control plane")
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
        try:
            async with fail_together(parts, serving):
                yield Control(f"http://{_for_clients(host)}:{port}", services, stop)
        finally:
            services.closing.set()
            server.should_exit = True
            stop.set()
            await asyncio.wait({serving}, timeout=10)
            await asyncio.wait({parts}, timeout=10)
            await engine.close()
            await messages.close()
            await view.stop()


@asynccontextmanager
async def fail_together(*tasks: asyncio.Task[None]) -> AsyncIterator[None]:
    """Cancel the block if one of `tasks` ends, and raise what ended it."""
    block = asyncio.current_task()
    assert block is not None
    failed: list[asyncio.Task[None]] = []

    def ended(task: asyncio.Task[None]) -> None:
        failed.append(task)
        block.cancel()

    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    except asyncio.CancelledError:
        if not failed:
            raise
        block.uncancel()
        if failed[0].cancelled() or (error := failed[0].exception()) is None:
            raise RuntimeError(f"{failed[0].get_name()} ended though nobody stopped it") from None
        raise error from None
    finally:
        for task in tasks:
            task.remove_done_callback(ended)


@contextmanager
def _listen(settings: ApiSettings) -> Iterator[socket.socket]:
    """A bound socket, before anything else is started, so that a taken port is said at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen(2048)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error};"
                " choose another with --api-port (0 = a free one)"
            ) from None
        yield listener
    finally:
        listener.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process, not to its HTTP part."""
        yield


def _server(services: Services, settings: ApiSettings) -> _Server:
    app = create_app(services, token=settings.token)
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
        server_header=False,
        timeout_keep_alive=75,
    )
    return _Server(config)


def _ready(bus: Bus, stop: asyncio.Event, missing: Collection[str]) -> tuple[bool, dict[str, str]]:
    parts = {
        "bus": "ok" if bus.connected else "not connected",
        "streams": f"missing: {', '.join(sorted(missing))}" if missing else "ok",
        "process": "draining" if stop.is_set() else "ok",
    }
    return all(state == "ok" for state in parts.values()), parts


def _for_clients(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # noqa: S104 - the address to reach it at from here
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
