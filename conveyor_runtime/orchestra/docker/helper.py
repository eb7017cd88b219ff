"""Small commands run inside a container to look after its execs and its workspace."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from conveyor_runtime.errors import BackendError, BackendUnavailable, Gone, TerminalError
from conveyor_runtime.orchestra.archive import CLEAR
from conveyor_runtime.orchestra.docker import scripts
from conveyor_runtime.orchestra.docker.client import Conflicting, Engine, translate
from conveyor_runtime.orchestra.docker.spec import EXECS
from conveyor_runtime.orchestra.docker.stream import Connection
from conveyor_runtime.orchestra.execs import Record

__all__ = ["Helper", "Note"]

_SHORT = 30.0  # seconds to look at processes
_LONG = 600.0  # seconds to go through a tree of files


@dataclass(frozen=True)
class Note:
    """What an exec noted beside its record: its user, and how many processes had run out of memory before it."""

    user: str
    oom_kills: int


class Helper:
    """Raises `Gone` when the container is not there or does not run, `BackendError` when no answer comes in time: what
    is in a container may be broken in any way, and holds up nobody for ever."""

    def __init__(self, engine: Engine, container: str) -> None:
        self._engine = engine
        self._container = container

    async def sweep(self, nonces: list[str], signal: int, user: str) -> list[int]:
        """Signal (0 = none) all processes of these execs, of all execs if none are given; returns who they are.

        Runs as the execs' own user: only so may it see their environment. A container that has gone has no processes.
        """
        try:
            out = await self._run(scripts.SWEEP, [str(signal), EXECS, *nonces], user)
        except Gone:
            return []
        return [int(word) for word in out.split()]

    async def quiet(self, grace: float) -> None:
        """Give the execs that still run the chance to end by themselves, within `grace` seconds."""
        deadline = asyncio.get_running_loop().time() + grace
        try:
            left = await self.sweep([], 15, "0")
            while left and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.1)
                left = await self.sweep([], 0, "0")
        except (BackendError, TerminalError) as error:
            if isinstance(error, BackendUnavailable):
                raise
            # A container that cannot be looked after (paused, hanging, without sh) is removed all the same.

    async def records(self, *, fence: str = "") -> tuple[int, list[tuple[Record, Note]]]:
        """How many processes have run out of memory so far, and all records; puts up a fence first if one is named."""
        first, *lines = (await self._run(scripts.LIST, [EXECS, fence], "0")).splitlines()
        found = []
        for line in lines:
            name, _, noted = line.partition(" ")
            record = Record.parse(name)
            if record is not None:
                # One that is still writing its note has noted nothing yet; it will meet the fence.
                _, user, oom = noted.split() if len(noted.split()) == 3 else ("", "0", "0")
                found.append((record, Note(user, int(oom) if oom.isdigit() else 0)))
        return int(first), found

    async def ran_out_of_memory(self, nonce: str) -> bool:
        """Whether a process of the container ran out of memory since this exec began."""
        kills, notes = await self.records()
        return any(record.nonce == nonce and kills > note.oom_kills for record, note in notes)

    async def clear(self, workspace: str, relative: str) -> None:
        """Make a directory of the workspace, or empty it."""
        await self._run(CLEAR, [workspace, relative], "0", long=True)

    async def own(self, user: str, path: str, *, long: bool = False) -> None:
        """Give `user` the tree at `path`; `long` if there may be much of it."""
        await self._run(scripts.OWN, [user, path], "0", long=long)

    async def _run(self, script: str, arguments: list[str], user: str, *, long: bool = False) -> str:
        command = ["sh", "-c", script, "sh", *arguments]
        call, seconds = (self._engine.transfer, _LONG) if long else (self._engine.call, _SHORT)
        code, out, err = await call(self._blocking, command, user, seconds)
        if code != 0:
            raise BackendError(f"cannot look after container {self._container[:12]}: {err.strip() or f'code {code}'}")
        return out

    def _blocking(self, command: list[str], user: str, seconds: float) -> tuple[int, str, str]:
        api = self._engine.api
        try:
            created = api.exec_create(self._container, command, user=user, workdir="/")
            found = Connection.start(api, created["Id"]).collect(seconds)
            code = api.exec_inspect(created["Id"])["ExitCode"]
        except TimeoutError as error:
            raise BackendError(f"container {self._container[:12]} has not answered for {seconds:g} s") from error
        except Exception as error:
            if isinstance(translate(error), Conflicting):
                raise Gone(f"the container {self._container[:12]} does not run") from error
            raise
        if code is None:
            raise Gone(f"the container {self._container[:12]} stopped meanwhile")
        return int(code), found["stdout"].decode(errors="replace"), found["stderr"].decode(errors="replace")
