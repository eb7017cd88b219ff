"""A nats-server of our own as a child process: made, watched, restarted, and gone when we are."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

from conveyor_runtime.bus.connection import Bus
from conveyor_runtime.bus.disk import Disk
from conveyor_runtime.bus.server_setup import (
    check_sync_text,
    credentials,
    find_server,
    lock_data_dir,
    port_before,
    remember_port,
    write_config,
)
from conveyor_runtime.bus.vitals import bytes_read, greets
from conveyor_runtime.errors import BusError, BusUnavailable, ConfigError
from conveyor_runtime.kit.backoff import Backoff
from conveyor_runtime.kit.child import end_of, end_with_parent
from conveyor_runtime.telemetry import metrics

__all__ = ["EmbeddedServer"]

log = logging.getLogger(__name__)

START_TIMEOUT = 60.0
"""Seconds in which a starting server must answer, or read on in its store, which it does first."""

PROGRESS = 1 << 20
"""Bytes that a server has read in this time that reads on."""

PROBE = 5.0
"""Seconds between two looks whether the server answers, and for the answer."""

MOST_MISSED = 6
"""Answers in a row that may stay away before the server is killed: a minute, as disks and machines can be slow."""

HEALTHY = 10.0
"""Seconds a server must have run for its next death to be treated as the first."""


class EmbeddedServer:
    """One nats-server with its data in `data_dir`, for as long as this object (and its process) lives.

    `port` 0 takes the one it had last in this directory, else a free one, and keeps it. `sync` is `always` (nothing
    acknowledged is lost to a power cut) or a duration such as `2m`. The server ends with the thread that started it,
    however that ends.
    """

    def __init__(self, data_dir: Path, *, host: str = "127.0.0.1", port: int = 0, sync: str = "always") -> None:
        if not 0 <= port <= 65535:
            raise ConfigError(f"port {port} is no port")
        self._dir = data_dir.resolve()
        self._host = host
        self._port = port
        self._sync = check_sync_text(sync)
        self._login = ("", "")
        self._binary = ""
        self._lock: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._disk: Disk | None = None

    @property
    def disk_is_full(self) -> bool:
        """Whether there is too little room for new work."""
        return self._disk is not None and self._disk.full

    @property
    def url(self) -> str:
        """Where to connect, credentials included: not for logs."""
        host = "127.0.0.1" if self._host == "0.0.0.0" else self._host  # noqa: S104
        return f"nats://{self._login[0]}:{self._login[1]}@{host}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The server's process id; None when it does not run."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the server and wait until it serves.

        Raises ConfigError when the port or the data directory is taken or no usable nats-server is installed, BusError
        when the server does not come up.
        """
        if self._keeper is not None:
            return
        self._binary = await find_server()
        try:
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as exc:
            raise ConfigError(f"cannot make the data directory {self._dir}: {exc.strerror}") from exc
        self._lock = await lock_data_dir(self._dir)
        try:
            self._login = credentials(self._dir)
            await self._launch_on_some_port()
        except BaseException:
            await self.stop()
            raise
        self._disk = Disk(self._dir, self._dir / "nats-server.log")
        self._keeper = asyncio.get_running_loop().create_task(self._keep())
        self._watcher = asyncio.get_running_loop().create_task(self._watch(self._disk))

    async def stop(self, *, grace: float = 10.0) -> None:
        """End the server: SIGTERM, `grace` seconds, SIGKILL. The data stays."""
        for task in filter(None, (self._watcher, self._keeper)):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._watcher = self._keeper = None
        await self._end(grace)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _launch_on_some_port(self) -> None:
        """The first start. Drivers on other machines and in other terminals know only the port of the last time."""
        chosen = bool(self._port)
        self._port = self._port or port_before(self._dir)
        try:
            await self._launch()
        except ConfigError:
            if chosen or not self._port:
                raise
            log.warning("bus: port %d of the last time is taken; using another one", self._port)
            await self._end(grace=2)
            self._port = 0
            await self._launch()
        if not chosen:
            remember_port(self._dir, self._port)

    async def _launch(self) -> None:
        """One start, until the server serves."""
        assert self._lock is not None
        for old in self._dir.glob("*.ports"):
            old.unlink(missing_ok=True)
        config = write_config(self._dir, host=self._host, port=self._port, sync=self._sync, login=self._login)
        logfile = self._dir / "nats-server.log"
        with logfile.open("ab") as out:
            start = out.tell()
            self._process = await asyncio.create_subprocess_exec(
                self._binary,
                "--config",
                str(config),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                # Its own session: Ctrl-C at the terminal must reach us only, we still need it to drain.
                start_new_session=True,
                preexec_fn=end_with_parent(self._lock),
                pass_fds=(self._lock,),
            )
        give_up, read = time.monotonic() + START_TIMEOUT, 0
        while not await self._serves(self._process.pid):
            if time.monotonic() > give_up and (now := bytes_read(self._process.pid)) - read > PROGRESS:
                log.info("bus: nats-server is still reading its store")
                give_up, read = time.monotonic() + START_TIMEOUT, now
            if self._process.returncode is not None or time.monotonic() > give_up:
                raise self._explain(logfile, start)
            await asyncio.sleep(0.02)

    async def _serves(self, pid: int) -> bool:
        # The ports file is written by this very process once it listens: whoever answers on the port is it.
        try:
            ports = json.loads((self._dir / f"nats-server_{pid}.ports").read_text())
        except (FileNotFoundError, ValueError):
            return False
        self._port = urlsplit(ports["nats"][0]).port or self._port
        try:
            probe = await Bus.connect(self.url, name="probe", patience=0)
        except BusUnavailable:
            return False
        try:
            await probe.api("INFO", timeout=1)
        except BusError:
            return False
        finally:
            await probe.close()
        return True

    def _explain(self, logfile: Path, start: int) -> Exception:
        with logfile.open("rb") as file:
            file.seek(start)
            lines = file.read()[-20000:].decode("utf-8", "replace").splitlines()
        if any("address already in use" in line for line in lines):
            return ConfigError(
                f"port {self._port} on {self._host} is taken; stop what listens there or choose another port"
            )
        return BusError(f"nats-server did not come up; the end of {logfile}:\n" + "\n".join(lines[-10:]))

    async def _end(self, grace: float) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(grace):
                await process.wait()
        except TimeoutError:
            log.warning("bus: nats-server did not end within %g s; killing it", grace)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _watch(self, disk: Disk) -> None:
        while True:
            await disk.until_server_must_restart()
            log.warning("bus: nats-server does not write any more since the disk was full; starting it again")
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.terminate()

    async def _keep(self) -> None:
        """Start the server again whenever it ends, on the same port and data."""
        backoff = Backoff(0.1, 5.0)
        while True:
            began = time.monotonic()
            if self._process is not None:
                code = await self._end_of(self._process)
                log.warning("bus: nats-server has ended (%d); starting it again", code)
            if time.monotonic() - began > HEALTHY:
                backoff.reset()
            await asyncio.sleep(backoff.next())
            metrics.BUS_RESTARTS.inc()
            try:
                await self._launch()
            except (BusError, ConfigError, OSError) as exc:
                log.error("bus: nats-server does not start: %s", exc)
                await self._end(grace=2)

    async def _end_of(self, process: asyncio.subprocess.Process) -> int:
        """Wait for the server's end, and bring it about if it hangs; its exit code."""
        missed = 0
        while missed < MOST_MISSED:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE):
                    return await process.wait()
            missed = 0 if await greets(self.url, PROBE) else missed + 1
        log.error("bus: nats-server has not answered %d times in %g s each; killing it", missed, PROBE)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return await end_of(process, PROBE)
