"""One docker container that runs a command: what the engine says of it, in whichever process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

from conveyor_runtime.errors import BackendError, Gone
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.orchestra import execs
from conveyor_runtime.orchestra.docker import spec
from conveyor_runtime.orchestra.docker.client import Conflicting, Engine
from conveyor_runtime.orchestra.docker.ending import Ending
from conveyor_runtime.orchestra.docker.inspected import has_ended, moment, ports
from conveyor_runtime.orchestra.docker.removal import remove_container
from conveyor_runtime.orchestra.docker.stats import StatsReader
from conveyor_runtime.orchestra.docker.stream import Connection, Demux, Streaming
from conveyor_runtime.orchestra.status import ContainerStatus, OnOutput, OnStat
from conveyor_runtime.orchestra.task import Stdin

__all__ = ["DockerContainer"]

log = logging.getLogger(__name__)

_AGAIN = 0.1  # seconds between looks at a container that is being started again
_KILLED = 15.0  # seconds for the engine to kill one


class DockerContainer:
    """See `conveyor_runtime.orchestra.base.Container`, `capabilities.Freezable` and `capabilities.Measured`."""

    def __init__(self, engine: Engine, attributes: Mapping[str, Any]) -> None:
        """`attributes` are the container's, as inspected."""
        self._engine = engine
        self._id = str(attributes["Id"])
        self._name = str(attributes["Name"]).lstrip("/")
        self._labels: dict[str, str] = attributes["Config"].get("Labels") or {}
        self._created = moment(attributes["Created"])
        self._ending = Ending(engine, self._name, self._id, self._labels)
        self._final: ContainerStatus | None = None

    @property
    def id(self) -> str:
        return self._id

    @property
    def timeout(self) -> tuple[datetime, float] | None:
        """When its time is over, and the grace in seconds it then has; None if it has all the time."""
        limit = spec.time_limit(self._labels)
        return (self._created + limit[0], limit[1]) if limit else None

    async def status(self) -> ContainerStatus:
        """See the contract."""
        if self._final is None:
            status = await self._look()
            if not status.done:
                return status
            self._final = status
        return self._final

    async def wait(self) -> ContainerStatus:
        """See the contract."""
        while not (status := await self.status()).done:
            await self._stopped()
            if not (await self.status()).done:
                await asyncio.sleep(_AGAIN)  # it will be started again, or is just being
        return status

    async def logs(self, on_output: OnOutput, *, follow: bool = True) -> None:
        """See the contract."""
        passed = {"stdout": 0, "stderr": 0}
        while True:
            done = (await self.status()).done
            await self._read_logs(on_output, passed, follow=follow and not done)
            if done or not follow:
                return
            if not (await self.status()).done:
                await asyncio.sleep(_AGAIN)  # the stream ends with each restart

    async def stop(self, grace: float = 10.0) -> None:
        """See the contract."""
        try:
            attributes = await self._inspect()
            if has_ended(attributes) or self._final is not None:
                return
            await self._ending.decide("cancelled", None)
            if attributes["HostConfig"]["RestartPolicy"]["Name"] not in ("", "no"):
                # `always` would start it again with the engine.
                await self._engine.call(self._engine.api.update_container, self._id, restart_policy={"Name": "no"})
        except Gone:
            return
        await self.end(grace)

    async def feed(self, connection: Connection, stdin: Stdin) -> None:
        """Hand it its input, for as long as it runs. If that breaks off, for whatever reason, it is killed and counts
        as an error: what it has read so far must not pass for all there was."""
        feeding = asyncio.ensure_future(connection.hand(stdin))
        ended = asyncio.ensure_future(self._stopped())
        try:
            await asyncio.wait([feeding, ended], return_when=asyncio.FIRST_COMPLETED)
            (feeding if feeding.done() else ended).result()
            await self._ending.note_fed()
            connection.end_input()
        except Gone:
            return
        except BaseException as error:
            if isinstance(error, Exception):
                log.warning("the input of %s broke off: %r", self._name, error, extra={"action": "stdin_failed"})
            await finish(self._cut_off())
            if not isinstance(error, Exception):
                raise
        finally:
            connection.stop()
            connection.close()
            for work in (feeding, ended):
                work.cancel()
            await asyncio.gather(feeding, ended, return_exceptions=True)

    async def _cut_off(self) -> None:
        try:
            await self._ending.decide("error", "input")
            await self.end(0)
        except BackendError as error:  # without the note that all has come it counts as an error all the same
            log.warning("cannot end a container without input: %s", error, extra={"action": "stdin_failed"})

    async def end(self, grace: float) -> None:
        """SIGTERM, `grace` seconds, SIGKILL, without the mark of a cancellation."""
        with contextlib.suppress(Gone, Conflicting):  # gone, or ended by itself
            await self.unfreeze()
            if grace > 0:
                await self._engine.call(self._engine.api.kill, self._id, "SIGTERM")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grace):
                        await self._stopped()
            if not (await self.status()).done:
                await self._engine.call(self._engine.api.kill, self._id, "SIGKILL")
        try:
            async with asyncio.timeout(_KILLED):
                await self.wait()
        except TimeoutError:
            raise BackendError(f"the container {self._id[:12]} survives SIGKILL") from None

    async def cleanup(self) -> None:
        """See the contract."""
        await remove_container(self._engine, self._id)
        await self._ending.forget()

    async def freeze(self) -> None:
        """See the contract."""
        with contextlib.suppress(Conflicting):  # frozen already
            await self._engine.call(self._engine.api.pause, self._id)

    async def unfreeze(self) -> None:
        """See the contract."""
        if (await self._inspect())["State"].get("Paused"):
            with contextlib.suppress(Conflicting):
                await self._engine.call(self._engine.api.unpause, self._id)

    async def stats(self, on_stat: OnStat) -> None:
        """See the contract."""
        if (await self.status()).done:
            return
        reader = StatsReader(self._engine.api, self._id).reader()
        try:
            while (stat := await reader.next()) is not None:
                await on_stat(stat)
                if (await self.status()).done:
                    return
        except Gone:
            return
        finally:
            reader.close()

    async def _look(self) -> ContainerStatus:
        try:
            attributes = await self._inspect()
        except Gone:
            return ContainerStatus("error", None, "gone", self._created, datetime.now(UTC))
        state, restarts = attributes["State"], int(attributes.get("RestartCount") or 0)
        started = moment(state["StartedAt"]) if state["StartedAt"][:4] > "0001" else self._created
        running = ContainerStatus("running", None, None, started, None, ports(attributes), restarts)
        if not has_ended(attributes):
            return running
        code = int(state["ExitCode"])
        # One that could not be started has no time of its end.
        finished = moment(state["FinishedAt"]) if state["FinishedAt"][:4] > "0001" else started
        started = min(started, finished)  # the engine notes the start when it is done with it, and that may be later
        ended = execs.status_of(code, started, oom=await self._ran_out_of_memory(attributes, started))
        status, reason = ended.status, ended.reason
        if self.timeout is not None and finished >= self.timeout[0]:
            status, reason = "timeout", None
        try:
            decided = await self._ending.of(status, reason, finished)
        except Gone:
            return await self._look()
        return ContainerStatus(decided[0], code, decided[1], started, finished, (), restarts) if decided else running

    async def _ran_out_of_memory(self, attributes: Mapping[str, Any], started: datetime) -> bool:
        """Whether the kernel killed it for that. The engine forgets to note it when it hears of the end first, but its
        event comes all the same."""
        state = attributes["State"]
        if state.get("OOMKilled") or state["ExitCode"] != 137 or not attributes["HostConfig"].get("Memory"):
            return bool(state.get("OOMKilled"))

        def events() -> list[Any]:
            since, until = (f"{when.timestamp():.6f}" for when in (started, datetime.now(UTC)))
            wanted = {"container": self._id, "event": "oom"}
            return list(self._engine.api.events(since=since, until=until, filters=wanted, decode=True))

        return bool(await self._engine.call(events))

    async def _inspect(self) -> Any:
        return await self._engine.call(self._engine.api.inspect_container, self._id)

    async def _stopped(self) -> None:
        """Return when it is seen not to run, were it for the moment before a restart only."""
        url = self._engine.api._url("/containers/{0}/wait", self._id)
        await self._consume(Streaming(self._engine.api, "POST", url, {"condition": "not-running"}))

    async def _read_logs(self, on_output: OnOutput, passed: dict[str, int], *, follow: bool) -> None:
        """Pass on what the log has beyond what was `passed` already, in bytes per stream."""
        url = self._engine.api._url("/containers/{0}/logs", self._id)
        parameters = {"stdout": 1, "stderr": 1, "follow": int(follow)}
        skip, demux = dict(passed), Demux()

        async def take(data: bytes) -> None:
            for stream, pieces in groupby(demux.feed(data), key=itemgetter(0)):
                joined = b"".join(piece for _, piece in pieces)  # each line is a frame of its own
                rest = joined[skip[stream] :]
                skip[stream] -= len(joined) - len(rest)
                if rest:
                    passed[stream] += len(rest)
                    await on_output(stream, rest)

        await self._consume(Streaming(self._engine.api, "GET", url, parameters), take)

    async def _consume(self, streaming: Streaming, take: Callable[[bytes], Awaitable[None]] | None = None) -> None:
        reader = streaming.reader()
        try:
            while (data := await reader.next()) is not None:
                if take is not None:
                    await take(data)
        finally:
            reader.close()
