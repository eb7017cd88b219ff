"""What stands in a process for its connection, its store and its pullers: each request waits for the world."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from conveyor_runtime.bus import Message, Receipt, Slots
from conveyor_runtime.bus.streams import DLQ
from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.store import Change, Stored, Write
from tests.model.process import Process
from tests.model.server import Handed


class Line:
    """A process's connection, as far as it is asked for anything."""

    max_payload = 1 << 20

    def __init__(self, process: Process) -> None:
        self.process = process
        self.closed = asyncio.Event()

    @property
    def connected(self) -> bool:
        return self.process.connected_since is not None

    @property
    def connected_since(self) -> float | None:
        return self.process.connected_since

    async def api(self, verb: str, body: object | None = None, *, timeout: float = 5.0) -> dict[str, Any]:
        server = self.process.server
        answer: dict[str, Any] = await self.process.ask(verb, lambda: server.api(verb, body), timeout=timeout)
        return answer

    async def publish(
        self, subject: str, data: bytes, *, msg_id: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Receipt:
        assert subject.startswith("cv.dlq.")
        [receipt] = await GatedCommitter(self.process, DLQ).commit([Message(subject, data, msg_id, headers=headers)])
        return receipt

    def publish_core(self, subject: str, data: bytes) -> None:
        if subject.startswith("cv.hint"):
            self.process.tell("hint", self.process.on_hint)

    async def subscribe_core(self, subject: str, callback: Callable[[Any], None]) -> Callable[[], Awaitable[None]]:
        if subject.startswith("cv.hint"):
            self.process.hints.append(callback)

        async def unsubscribe() -> None:
            self.process.hints.clear()

        return unsubscribe

    def add_connection_listener(self, listener: Callable[[bool], None]) -> Callable[[], None]:
        self.process.listeners.append(listener)
        return lambda: self.process.listeners.remove(listener)

    async def wait_connected(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self.process.up.wait()
        except TimeoutError:
            raise BusUnavailable("not connected") from None


class GatedStore:
    """A process's way to the store."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._server = process.server

    async def get(self, key: str) -> Stored | None:
        found: Stored | None = await self._process.ask(f"get {key}", lambda: self._server.get(key), timeout=5.0)
        return found

    async def commit(self, unit: Sequence[Write], *, timeout: float = 10.0) -> list[int]:
        revisions: list[int] = await self._process.ask(
            "commit", lambda: self._server.commit(unit), timeout=timeout, writes=True
        )
        return revisions

    async def list(self, prefix: str) -> Any:
        return await self._process.ask(f"list {prefix}", lambda: self._server.all_of(prefix))

    async def purge(self, prefix: str) -> None:
        await self._process.ask(f"purge {prefix}", lambda: self._server.purge(prefix), writes=True)

    def watch(self) -> GatedWatch:
        return GatedWatch(self._process)


class GatedWatch:
    """A process sees a change some time after it was made, one after another."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._changes = process.server.changes
        newest = {change.key: change for change in self._changes}
        self._present = sorted(newest.values(), key=lambda change: change.revision)
        self._at = len(self._changes)

    async def __aiter__(self) -> AsyncIterator[Change]:
        for change in self._present:
            yield change
        self._present.clear()
        while True:
            yield await self._process.ask(
                "see", self._take, timeout=None, when=lambda: self._at < len(self._changes), writes=False
            )

    def _take(self) -> Change:
        self._at += 1
        return self._changes[self._at - 1]

    async def wait_caught_up(self) -> None:
        while self._present:
            await asyncio.sleep(0)

    async def aclose(self) -> None:
        """Nothing is held."""


class GatedCommitter:
    """A process's way into one stream."""

    def __init__(self, process: Process, stream: str) -> None:
        self._process = process
        self._stream = stream

    async def commit(self, unit: Sequence[Message], *, timeout: float = 10.0) -> list[Receipt]:
        [message] = unit
        server = self._process.server
        seq, duplicate = await self._process.ask(
            f"publish {message.subject}", lambda: server.publish(self._stream, message), timeout=timeout, writes=True
        )
        return [Receipt(seq, duplicate)]


class GatedPuller:
    """Stands in for a Puller: made by the product, with the product's arguments."""

    def __init__(self, bus: Any, stream: str, consumer: str, slots: Slots, *, on_missing: object) -> None:
        self._process: Process = bus.process
        self._consumer = consumer
        self._free = slots.total
        self._stopped = asyncio.Event()

    async def next(self) -> GatedDelivery:
        server = self._process.server
        handed = await self._process.ask(
            f"next {self._consumer}",
            lambda: server.fetch(self._consumer),
            timeout=None,
            when=lambda: self._free > 0 and server.waits(self._consumer),
        )
        self._free -= 1
        return GatedDelivery(self._process, handed, self._give)

    def _give(self) -> None:
        self._free += 1

    async def stop(self) -> None:
        self._free = -1_000_000


class GatedDelivery:
    """One arrival of a message, as `Delivery` has it."""

    def __init__(self, process: Process, handed: Handed, give: Callable[[], None]) -> None:
        self._process = process
        self._handed = handed
        self._give = give
        self._settled = False
        self.subject = handed.item.subject
        self.data = handed.item.data
        self.headers = handed.item.headers
        self.stream_seq = handed.item.seq
        self.num_delivered = handed.delivered
        self.time = handed.item.time

    @property
    def age(self) -> float:
        return (self._process.clock.utc() - self.time).total_seconds()

    async def ack(self) -> None:
        self._settle("ack", lambda: self._process.server.ack(self._handed))

    async def nak(self, delay: float | None = None) -> None:
        self._settle("nak", lambda: self._process.server.nak(self._handed, delay or 0.0))

    async def term(self, reason: str) -> None:
        await self.ack()

    def in_progress(self) -> None:
        if not (self._process.away or self._process.dead):
            self._handed.seen = self._process.clock.now

    def _settle(self, how: str, run: Callable[[], None]) -> None:
        if not self._settled:
            self._settled = True
            self._give()
            self._process.tell(how, run)
