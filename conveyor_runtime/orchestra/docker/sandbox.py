"""One container as a sandbox: execs with live output and an end that reaches everything they started."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conveyor_runtime.errors import BackendError, Gone, TerminalError
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.orchestra import execs
from conveyor_runtime.orchestra.archive import tar_stream
from conveyor_runtime.orchestra.docker.client import Conflicting, Engine
from conveyor_runtime.orchestra.docker.helper import Helper
from conveyor_runtime.orchestra.docker.reading import ByteReader
from conveyor_runtime.orchestra.docker.removal import remove_container
from conveyor_runtime.orchestra.docker.spec import EXECS, USER
from conveyor_runtime.orchestra.docker.stream import Connection, Demux
from conveyor_runtime.orchestra.docker.transfer import put
from conveyor_runtime.orchestra.docker.warm_names import taken_mark
from conveyor_runtime.orchestra.status import ExitStatus, OnOutput
from conveyor_runtime.orchestra.task import ExecTag, Stdin

__all__ = ["DockerSandbox"]

_QUIET = (0.5, 1.0, 2.0)  # seconds without output after which the exec's state is asked for, the last one repeated
_SETTLE = 10.0  # seconds for the engine to know what became of an exec


class DockerSandbox:
    """See `conveyor_runtime.orchestra.capabilities.Sandbox`."""

    def __init__(self, engine: Engine, attributes: Mapping[str, Any]) -> None:
        """`attributes` are the container's, as inspected."""
        self._engine = engine
        self._id = str(attributes["Id"])
        self._name = str(attributes["Name"]).lstrip("/")
        self._workspace = str(attributes["Config"]["WorkingDir"])
        self._user = str((attributes["Config"].get("Labels") or {}).get(USER) or "0")
        self._helper = Helper(engine, self._id)

    @property
    def id(self) -> str:
        return self._id

    @property
    def workspace(self) -> str:
        return self._workspace

    async def exec(
        self,
        argv: list[str],
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        stdin: Stdin = b"",
        timeout: float | None = None,
        grace: float = 10.0,
        on_output: OnOutput,
        tag: ExecTag,
    ) -> ExitStatus:
        """See the contract."""
        nonce = execs.new_nonce()
        user = user or self._user
        command = execs.wrap(
            argv,
            directory=EXECS,
            tag=execs.check_tag(tag),
            nonce=nonce,
            note=f"{tag.run_id} {user}",
            workdir=execs.resolve_workdir(self._workspace, workdir),
        )
        started_at = datetime.now(UTC)
        run = _Run(self._engine, self._helper, nonce, user, stdin, on_output)
        environment = {**(env or {}), execs.EXEC_MARK: nonce}
        await run.create(self._id, command, environment)
        run.start()
        try:
            async with asyncio.timeout(timeout) as clock:
                code = await run.wait()
        except TimeoutError:
            if not clock.expired():
                raise
            await finish(run.end(grace))
            return ExitStatus("timeout", await run.wait(), None, started_at, datetime.now(UTC))
        except BaseException:
            await finish(run.end(grace))
            raise
        finally:
            await finish(run.close())
        status = execs.status_of(code, started_at)
        if status.status != "killed":
            return status
        await self._check_alive()  # killed because somebody removed the container: then it says so
        return execs.status_of(code, started_at, oom=await self._helper.ran_out_of_memory(nonce))

    async def end_execs(self, step: str, before: tuple[int, int], *, grace: float = 10.0) -> int:
        """See the contract."""
        execs.check_tag(ExecTag("", step, *before))
        by_user: dict[str, list[str]] = {}
        _, notes = await self._helper.records(fence=execs.fence_name(step, before))
        for record, note in notes:
            if record.is_before(step, before):
                by_user.setdefault(note.user, []).append(record.nonce)
        ended = 0
        for user, nonces in by_user.items():
            for nonce in nonces:
                ended += bool(await self._helper.sweep([nonce], 0, user))

            async def sweep(signal: int, nonces: list[str] = nonces, user: str = user) -> list[int]:
                return await self._helper.sweep(nonces, signal, user)

            await execs.end(sweep, grace)
        return ended

    async def copy_in(self, source: Path, target: str) -> None:
        """See the contract."""
        relative = execs.resolve_target(target)
        path = execs.resolve_workdir(self._workspace, relative)
        stream = await asyncio.to_thread(tar_stream, source)
        # None of it goes on when the caller is cancelled: somebody else may fill that directory next.
        await self._helper.clear(self._workspace, relative)
        await put(self._engine, self._id, path, stream)
        await self._helper.own(self._user, path, long=True)

    async def cleanup(self) -> None:
        """See the contract."""
        await remove_container(self._engine, self._id)
        for volume in (f"{self._name}.workspace", taken_mark(self._name)):
            with contextlib.suppress(Gone):
                await self._engine.call(self._engine.api.remove_volume, volume)

    async def own(self, path: str) -> None:
        """Give a path with little below it to the user that execs run as."""
        await self._helper.own(self._user, path)

    async def _check_alive(self) -> None:
        attributes = await self._engine.call(self._engine.api.inspect_container, self._id)
        if not attributes["State"]["Running"]:
            reason = "ran out of memory" if attributes["State"].get("OOMKilled") else "was stopped from outside"
            raise Gone(f"the container {self._id[:12]} {reason}")


class _Run:
    """One exec, from its creation to the release of its connection."""

    def __init__(
        self, engine: Engine, helper: Helper, nonce: str, user: str, stdin: Stdin, on_output: OnOutput
    ) -> None:
        self._engine = engine
        self._helper = helper
        self._nonce = nonce
        self._user = user
        self._stdin = stdin
        self._on_output = on_output
        self._exec_id = ""
        self._connecting: asyncio.Future[Connection] | None = None
        self._reader: ByteReader | None = None
        self._pump: asyncio.Task[None] | None = None
        self._feeding: asyncio.Task[None] | None = None

    async def create(self, container: str, command: list[str], env: Mapping[str, str]) -> None:
        """Announce it to the engine; nothing runs yet."""
        try:
            created = await self._engine.call(
                self._engine.api.exec_create,
                container,
                command,
                environment=dict(env),
                user=self._user,
                stdin=self._stdin != b"",
            )
        except Conflicting as error:
            raise Gone(f"the container {container[:12]} does not run: {error}") from error
        self._exec_id = created["Id"]

    def start(self) -> None:
        """Ask for the start. From here on there may be processes, so `end` must be called unless `wait` returned."""
        self._connecting = asyncio.ensure_future(self._engine.call(Connection.start, self._engine.api, self._exec_id))
        self._pump = asyncio.create_task(self._take(self._connecting))

    async def wait(self) -> int:
        """The exit code, after all output has been passed on. Raises what `on_output` raised."""
        assert self._pump is not None
        await asyncio.shield(self._pump)
        deadline = asyncio.get_running_loop().time() + _SETTLE
        while (code := await self._ended()) is None:
            if asyncio.get_running_loop().time() > deadline:
                raise BackendError("docker does not say how an exec ended")
            await asyncio.sleep(0.05)
        return code

    async def end(self, grace: float) -> None:
        """End all its processes. Returns when they are gone."""
        assert self._connecting is not None
        # A start on its way cannot be called back: what it starts must be there before it can be found.
        await asyncio.wait([self._connecting])
        if self._connecting.exception() is None:
            await self._begun()
            await execs.end(lambda signal: self._helper.sweep([self._nonce], signal, self._user), grace)

    async def close(self) -> None:
        """Release the connection and stop passing output on."""
        for task in (self._pump, self._feeding):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    task.exception()  # wait() has raised it
        if self._reader is not None:
            self._reader.close()

    async def _take(self, connecting: asyncio.Future[Connection]) -> None:
        """Pass the output on until it ends, or until the exec has ended and been silent: what it left in the
        background may hold its streams for ever."""
        connection = await asyncio.shield(connecting)
        self._reader = connection.reader()
        if self._stdin != b"":
            self._feeding = asyncio.create_task(connection.feed(self._stdin))
        demux = Demux()
        quiet, ended = 0, False
        while True:
            try:
                async with asyncio.timeout(_QUIET[0] if ended else _QUIET[min(quiet, len(_QUIET) - 1)]):
                    data = await self._reader.next()
            except TimeoutError:
                if ended:
                    return
                quiet += 1
                ended = await self._ended() is not None
                continue
            if data is None:
                return
            quiet = 0
            for stream, piece in demux.feed(data):
                await self._on_output(stream, piece)

    async def _ended(self) -> int | None:
        found = await self._engine.call(self._engine.api.exec_inspect, self._exec_id)
        code = found.get("ExitCode")
        return None if found.get("Running") or code is None else int(code)

    async def _begun(self) -> None:
        deadline = asyncio.get_running_loop().time() + _SETTLE
        while asyncio.get_running_loop().time() < deadline:
            try:
                found = await self._engine.call(self._engine.api.exec_inspect, self._exec_id)
            except (Gone, TerminalError):
                return
            if found.get("Pid") or found.get("ExitCode") is not None:
                return
            await asyncio.sleep(0.02)
