"""A native container: what its directory says of it, in whichever process."""

from __future__ import annotations

import asyncio
import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from conveyor_runtime.errors import BackendError, Gone
from conveyor_runtime.orchestra import execs
from conveyor_runtime.orchestra.native import cgroups, records
from conveyor_runtime.orchestra.native.layout import Meta, is_of
from conveyor_runtime.orchestra.native.proc import Target, kill, start_of, sweep
from conveyor_runtime.orchestra.native.removal import remove_home
from conveyor_runtime.orchestra.native.usage import Meter
from conveyor_runtime.orchestra.status import ContainerStatus, OnOutput, OnStat, Stream

__all__ = ["NativeContainer"]

_CHUNK = 256 * 1024
_POLL = (0.0003, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)  # seconds between looks at files, the last one repeated
_SAMPLE = 1.0  # seconds
_SETTLE = 5.0  # seconds for a keeper to write down what has happened


class NativeContainer:
    """See `conveyor_runtime.orchestra.base.Container`."""

    def __init__(self, root: Path, ns: str, task_id: str, meta: Meta) -> None:
        self._root = root
        self._ns = ns
        self._home = root / ns / task_id
        self._meta = meta
        self._final: ContainerStatus | None = None

    @property
    def id(self) -> str:
        return f"{self._ns}.{self._home.name}"

    async def status(self) -> ContainerStatus:
        """See the contract."""
        return await self._look()

    async def wait(self) -> ContainerStatus:
        """See the contract."""
        looks = 0
        while not (status := await self._look()).done:
            pid = self._record("pid").get("pid", 0)
            if not (pid and await _ended(pid, self._record("pid").get("start", 0))):
                await asyncio.sleep(_POLL[min(looks, len(_POLL) - 1)])
                looks += 1
        return status

    async def logs(self, on_output: OnOutput, *, follow: bool = True) -> None:
        """See the contract."""
        streams: tuple[Stream, Stream] = ("stdout", "stderr")
        with contextlib.ExitStack() as stack:
            try:
                files = [(name, stack.enter_context(_opened(self._home / name))) for name in streams]
                if not is_of(self._home, self._meta):
                    raise FileNotFoundError(self._home)
            except FileNotFoundError as error:
                raise Gone(f"the container {self.id} was removed") from error
            ending = asyncio.create_task(self.wait()) if follow else None
            try:
                quiet = 0
                while True:
                    last = ending is None or ending.done()
                    news = False
                    for name, file in files:
                        while data := file.read(_CHUNK):
                            news = True
                            await on_output(name, data)
                            await asyncio.sleep(0)  # a taker that never waits must not keep others from their turn
                    if last or ending is None:
                        return
                    quiet = 0 if news else quiet + 1
                    await asyncio.wait([ending], timeout=_POLL[min(quiet, len(_POLL) - 1)])
            finally:
                if ending is not None:
                    ending.cancel()
                    await asyncio.wait([ending])

    async def stop(self, grace: float = 10.0) -> None:
        """See the contract."""
        with records.opened(self._home) as home:
            if (await self._look()).done or home is None or not is_of(home, self._meta) or not records.doom(home):
                return
        while not (await self._look()).done:
            try:
                async with asyncio.timeout(_SETTLE + grace):
                    await self._end(grace)
                    await self.wait()
            except TimeoutError:
                raise BackendError(f"the container {self.id} does not end") from None

    async def cleanup(self) -> None:
        """See the contract."""
        await remove_home(self._root, self._ns, self._home.name, self._meta)

    async def stats(self, on_stat: OnStat) -> None:
        """See `capabilities.Measured`."""
        if (await self._look()).done:
            return
        meter = Meter(self._home)
        ending = asyncio.ensure_future(self.wait())
        try:
            while not ending.done():
                stat = await asyncio.to_thread(meter.sample)
                if stat is not None:
                    await on_stat(stat)
                await asyncio.wait([ending], timeout=_SAMPLE)
            ending.result()
        finally:
            ending.cancel()
            await asyncio.wait([ending])

    async def _end(self, grace: float) -> None:
        cgroups.thaw(self._home)
        await execs.end(lambda number: asyncio.to_thread(sweep, self._targets(), number), grace)

    async def _look(self) -> ContainerStatus:
        if self._final is None:
            status = self._read()
            if not status.done and self._is_lost():
                await asyncio.to_thread(self._settle)
                status = self._read()
            if not status.done:
                return status
            self._final = status
        return self._final

    def _read(self) -> ContainerStatus:
        record = self._record("pid")
        if found := self._record("exit"):
            return _finished(found)
        if not record and not self._is_to_begin():
            return ContainerStatus("error", None, "gone", self._meta.created_at, datetime.now(UTC))
        started_at = datetime.fromtimestamp(record["at"], UTC) if record else self._meta.created_at
        return ContainerStatus("running", None, None, started_at, None, restarts=record.get("restarts", 0))

    def _is_to_begin(self) -> bool:
        """Whether somebody will start it, or did just now. One whose worker died before it had it started only begins
        when it is asked for again."""
        if not is_of(self._home, self._meta):
            return False
        return records.is_being_started(self._home) or bool(self._record("pid"))

    def _is_lost(self) -> bool:
        """Whether nobody will write down how it ended: it has lost its keeper and its command, or is not to begin."""
        if record := self._record("pid"):
            return not _alive(record)
        return (self._home / "cancelled").exists() and is_of(self._home, self._meta)

    def _settle(self) -> None:
        """End what is left of one that is lost, and write that down: how it ended nobody knows, and that must stay so.
        Not while it is in somebody's hand, who may be about to begin it or to write."""
        with records.locked(self._home) as home:
            if home is None or not is_of(home, self._meta) or (home / "exit").exists() or not self._is_lost():
                return
            left = kill(records.targets(home), _SETTLE)
            record = records.read_record(home, "pid")
            now = datetime.now(UTC).timestamp()
            found = {"code": None, "restarts": record.get("restarts", 0), "started": record.get("at", now)}
            found["verdict"] = "cancelled" if (home / "cancelled").exists() else "lost"
            end = {**found, "oom": False, "finished": now, "mark": self._meta.mark, "left": left}
            try:
                records.write_once(home / "exit", end)
            except OSError as error:
                raise BackendError(f"how the container {self.id} ended cannot be written: {error}") from error

    def _record(self, name: str) -> dict[str, Any]:
        found = records.read_record(self._home, name)
        return found if found.get("mark") == self._meta.mark else {}  # another container has the name by now

    def _targets(self) -> list[Target]:
        return [target for target in records.targets(self._home) if target.mark == self._meta.mark.encode()]


def _opened(path: Path) -> IO[bytes]:
    return open(path, "rb", 0)


def _finished(found: dict[str, Any]) -> ContainerStatus:
    code, verdict = found["code"], found["verdict"]
    started, finished = (datetime.fromtimestamp(found[name], UTC) for name in ("started", "finished"))
    ended = execs.status_of(code or 0, started, oom=found["oom"])
    if verdict in ("cancelled", "timeout"):
        return ContainerStatus(verdict, code, None, started, finished, restarts=found["restarts"])
    if verdict == "lost" or code is None:
        return ContainerStatus("error", None, "gone", started, finished, restarts=found["restarts"])
    return ContainerStatus(ended.status, code, ended.reason, started, finished, restarts=found["restarts"])


def _alive(record: dict[str, Any]) -> bool:
    """Whether its command or its keeper lives."""
    pairs = (("pid", "start"), ("keeper", "keeper_start"))
    return any(record[start] and start_of(record[pid]) == record[start] for pid, start in pairs)


async def _ended(pid: int, start: int) -> bool:
    """Wait until that process has ended; False if it had already."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if start_of(pid) != start:
            return False
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(handle, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(handle)
    finally:
        os.close(handle)
    return True
