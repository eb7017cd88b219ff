"""A native container: what its directory says of it, in whichever process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from conveyor_runtime.errors import BackendError, Gone
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.orchestra import execs
from conveyor_runtime.orchestra.native import cgroups, records
from conveyor_runtime.orchestra.native.layout import Meta
from conveyor_runtime.orchestra.native.proc import kill, start_of, sweep
from conveyor_runtime.orchestra.native.removal import remove_home
from conveyor_runtime.orchestra.native.usage import Meter
from conveyor_runtime.orchestra.status import ContainerStatus, OnOutput, OnStat, Stream

__all__ = ["FreezableContainer", "NativeContainer"]

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
        if (await self._look()).done or not records.doom(self._home):
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
        await remove_home(self._root, self._ns, self._home.name)

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
        await execs.end(lambda number: asyncio.to_thread(sweep, records.targets(self._home), number), grace)

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
        return records.is_being_started(self._home) or bool(self._record("pid"))

    def _is_lost(self) -> bool:
        """Whether nobody will write down how it ended: it has lost its keeper and its command, or is not to begin."""
        record = self._record("pid")
        return not _alive(record) if record else (self._home / "cancelled").exists()

    def _settle(self) -> None:
        """End what is left of one that is lost, and write that down: how it ended nobody knows, and that must stay so.
        Not while it is in somebody's hand, who may be about to begin it or to write."""
        with records.locked(self._home) as is_ours:
            if not is_ours or self._record("exit") or not self._is_lost():
                return
            left = kill(records.targets(self._home), _SETTLE)
            record = self._record("pid")
            now = datetime.now(UTC).timestamp()
            found = {"code": None, "restarts": record.get("restarts", 0), "started": record.get("at", now)}
            found["verdict"] = "cancelled" if (self._home / "cancelled").exists() else "lost"
            end = {**found, "oom": False, "finished": now, "left": left}
            try:
                records.write_once(self._home / "exit", end)
            except OSError as error:
                raise BackendError(f"how the container {self.id} ended cannot be written: {error}") from error

    def _record(self, name: str) -> dict[str, Any]:
        return records.read_record(self._home, name)


class FreezableContainer(NativeContainer):
    """See `capabilities.Freezable`. For machines where control groups can be made, and only there: SIGSTOP reaches one
    process after the other, shows its parent a stop that nobody meant, and any process may take it back."""

    async def freeze(self) -> None:
        """See the contract. One that has ended stays as it is; `BackendError` if it is not soon started again."""
        if not (await self._look()).done:
            await finish(asyncio.to_thread(self._freeze))

    async def unfreeze(self) -> None:
        """See the contract."""
        await asyncio.to_thread(cgroups.thaw, self._home)

    def _freeze(self) -> None:
        deadline = time.monotonic() + _SETTLE
        try:
            group = cgroups.add_freezer(self._home, self._meta.nonce)
            while True:
                # What is started by one inside is inside. What is started by one outside meanwhile is met again.
                while outside := set(sweep(records.targets(self._home), 0)) - cgroups.members([group]):
                    for pid in outside:
                        with contextlib.suppress(ProcessLookupError):
                            cgroups.enter([group], pid)
                cgroups.freeze(self._home)
                if cgroups.members([group]) or self._read().done:
                    return
                if time.monotonic() > deadline:
                    raise BackendError(f"the container {self.id} waits to be started again")
                time.sleep(_POLL[-1])  # it has ended a moment ago, or will be started again soon
        except OSError as error:
            raise BackendError(f"the container {self.id} cannot be frozen: {error}") from error


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
