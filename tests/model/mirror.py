"""The same as the server in memory, with every operation done on a real one as well: both must say the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from conveyor_runtime.bus import Bus, Committer, Message, wire
from conveyor_runtime.bus.consumers import ensure_consumer
from conveyor_runtime.bus.streams import STATE
from conveyor_runtime.errors import BusUnavailable, ConveyorError
from conveyor_runtime.store import KvStore, Stored, Write
from tests.model.loop import Clock
from tests.model.server import Handed, Server
from tests.model.steps import ensure
from tests.support.streams import fresh_streams

T = TypeVar("T")


class Real:
    """A connection to a nats-server, in a thread and a loop of its own: its time is not the world's."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="real", daemon=True)
        self._thread.start()
        self.bus = self.run(Bus.connect(url, name="model"))
        self._committers: dict[str, Committer] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of it. A server that does not answer is no fault that a process may meet: the test fails."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)
        except BusUnavailable as error:
            raise AssertionError(f"the real server: {error}") from error

    def reset(self) -> None:
        """Empty streams, and what writes into them."""
        self.run(self._reset())

    async def _reset(self) -> None:
        await self._close()
        await fresh_streams(self.bus)
        self.store = KvStore(self.bus, self.committer(STATE))

    async def _close(self) -> None:
        for committer in self._committers.values():
            await committer.close()
        self._committers.clear()

    def committer(self, stream: str) -> Committer:
        """The one of this stream."""
        if stream not in self._committers:
            self._committers[stream] = Committer(self.bus, stream)
        return self._committers[stream]

    async def publish(self, stream: str, message: Message) -> tuple[int, bool]:
        [receipt] = await self.committer(stream).commit([message])
        return receipt.seq, receipt.duplicate

    async def fetch(self, stream: str, consumer: str) -> tuple[int, str]:
        """The sequence of the next message, and where to answer it."""
        inbox, arrived = self.bus.new_inbox(), asyncio.Queue[Any]()
        unsubscribe = await self.bus.subscribe_core(inbox, arrived.put_nowait)
        asked = b'{"batch":1,"expires":10000000000}'
        self.bus.send(wire.assemble(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", b"", asked, inbox))
        msg = await asyncio.wait_for(arrived.get(), 12.0)
        await unsubscribe()
        return wire.origin(msg.reply).stream_seq, msg.reply

    def close(self) -> None:
        """End the thread."""
        self.run(self._close())
        self.run(self.bus.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class MirrorServer(Server):
    """Where the two differ, the test fails: one in memory that pleases itself would prove nothing."""

    def __init__(self, clock: Clock, real: Real) -> None:
        super().__init__(clock)
        self._real = real
        real.reset()

    def get(self, key: str) -> Stored | None:
        return _same(f"get {key}", super().get(key), self._real.run(self._real.store.get(key)))

    def all_of(self, prefix: str) -> list[Stored]:
        found = super().all_of(prefix)
        _same(
            f"list {prefix}", sorted(found, key=_key), sorted(self._real.run(self._real.store.list(prefix)), key=_key)
        )
        return found

    def purge(self, prefix: str) -> None:
        self._real.run(self._real.store.purge(prefix))
        super().purge(prefix)

    def commit(self, unit: Sequence[Write]) -> list[int]:
        outcome: list[int] | ConveyorError
        try:
            outcome = self._real.run(self._real.store.commit(unit))
        except ConveyorError as error:
            outcome = error
        try:
            revisions = super().commit(unit)
        except ConveyorError as error:
            ensure(type(error) is type(outcome), f"commit {unit}: {error!r} in memory, really {outcome!r}")
            raise
        return _same(f"commit {[write.key for write in unit]}", revisions, outcome)

    def publish(self, stream: str, message: Message) -> tuple[int, bool]:
        stored = self._real.run(self._real.publish(stream, message))
        return _same(f"publish {message.msg_id}", super().publish(stream, message), stored)

    def add_consumer(self, name: str, stream: str, subject: str) -> None:
        super().add_consumer(name, stream, subject)
        self._real.run(ensure_consumer(self._real.bus, stream, name, filters=[subject], ack_wait=3600.0))

    def fetch(self, name: str) -> Handed | None:
        consumer = self.consumers[name]
        item = self._next(consumer)
        if item is None:
            return None
        if item.seq in consumer.times:
            self._answer(consumer.tokens[item.seq], b"-NAK")
        handed = super().fetch(name)
        seq, token = self._real.run(self._real.fetch(consumer.stream, name))
        _same(f"next of {name}", item.seq, seq)
        assert handed is not None
        handed.token = consumer.tokens[item.seq] = token
        return handed

    def ack(self, handed: Handed) -> None:
        self._answer(handed.token, b"+ACK")
        super().ack(handed)

    def _answer(self, token: str, answer: bytes) -> None:
        self._real.run(self._real.bus.request(token, answer))

    def api(self, verb: str, body: Any) -> dict[str, Any]:
        """What the real server says. Its floor moves when something is acknowledged, ours is always where it may be."""
        try:
            answer = self._real.run(self._real.bus.api(verb, body))
        except ConveyorError as error:
            outcome: Any = error
        else:
            outcome = answer
        try:
            ours = super().api(verb, body)
        except ConveyorError as error:
            ensure(str(error) == str(outcome), f"{verb} {body}: {error} in memory, really {outcome}")
            raise
        for path in (("state", "last_seq"), ("delivered", "stream_seq"), ("message", "seq"), ("purged",)):
            _same(f"{path} of {verb} {body}", _at(ours, path), _at(answer, path))
        return answer


def _same(what: str, ours: T, real: object) -> T:
    ensure(ours == real, f"{what}: {ours} in memory, really {real}")
    return ours


def _at(answer: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        answer = answer.get(part) if isinstance(answer, dict) else None
    return answer


def _key(stored: Stored) -> str:
    return stored.key
