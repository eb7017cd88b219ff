"""What all processes of a world share: a store, two streams and their consumers, in memory.

Every operation happens at once and whole. `tests/model/mirror.py` does each on a real server as well.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from conveyor_runtime.bus import Message
from conveyor_runtime.bus.errors import ApiError
from conveyor_runtime.bus.streams import DLQ, MESSAGES, RESULTS
from conveyor_runtime.store import Change, MemoryStore, Stored, Write
from tests.model.loop import Clock

T = TypeVar("T")

#: Seconds after its last sign of life at which a delivery is handed out again.
ACK_WAIT = 30.0


@dataclass(frozen=True)
class Item:
    """A stored message."""

    seq: int
    subject: str
    data: bytes
    headers: Mapping[str, str]
    time: datetime


@dataclass(eq=False)
class Handed:
    """A message handed to a process: `token` names this delivery on a real server."""

    item: Item
    consumer: str
    delivered: int
    seen: float
    token: str = ""


@dataclass
class Consumer:
    """`out` are handed out and unanswered, `back` wait to be handed out again from a time on; `times` counts what was
    handed out, `tokens` says by which delivery of a real server."""

    stream: str
    subject: str
    at: int = 0
    out: dict[int, Handed] = field(default_factory=dict)
    back: list[tuple[float, int]] = field(default_factory=list)
    times: dict[int, int] = field(default_factory=dict)
    tokens: dict[int, str] = field(default_factory=dict)

    @property
    def floor(self) -> int:
        """The sequence up to which all is acknowledged."""
        return min([*self.out, *(seq for _, seq in self.back), self.at + 1]) - 1


class Server:
    """Synchronous: a process's request takes effect when the world lets it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.changes: list[Change] = []
        self.streams: dict[str, list[Item]] = {MESSAGES: [], RESULTS: [], DLQ: []}
        self.consumers: dict[str, Consumer] = {}
        self.on_write: Callable[[Change], None] = lambda change: None
        self.on_publish: Callable[[str, Item], None] = lambda stream, item: None
        self.on_ack: Callable[[str, Item], None] = lambda consumer, item: None
        self._store = MemoryStore()
        self._gone: dict[str, set[int]] = {name: set() for name in self.streams}

    # -- the store -----------------------------------------------------------------------------------------------

    def get(self, key: str) -> Stored | None:
        return done(self._store.get(key))

    def all_of(self, prefix: str) -> list[Stored]:
        return done(self._store.list(prefix))

    def purge(self, prefix: str) -> None:
        done(self._store.purge(prefix))

    def commit(self, unit: Sequence[Write]) -> list[int]:
        revisions = done(self._store.commit(unit))
        for write, revision in zip(unit, revisions, strict=True):
            change = Change(write.key, write.value, revision)
            self.changes.append(change)
            self.on_write(change)
        return revisions

    # -- streams -------------------------------------------------------------------------------------------------

    def publish(self, stream: str, message: Message) -> tuple[int, bool]:
        """The sequence, and whether it was there before."""
        items = self.streams[stream]
        for item in items:
            if message.msg_id is not None and item.headers.get("Nats-Msg-Id") == message.msg_id:
                return item.seq, True
        headers = {**(message.headers or {}), **({"Nats-Msg-Id": message.msg_id} if message.msg_id else {})}
        item = Item(len(items) + 1, message.subject, message.data, headers, self.clock.utc())
        items.append(item)
        self.on_publish(stream, item)
        return item.seq, False

    def add_consumer(self, name: str, stream: str, subject: str) -> None:
        self.consumers[name] = Consumer(stream, subject)

    def waits(self, name: str) -> bool:
        """Whether there is something to hand out now."""
        return self._next(self.consumers[name]) is not None

    def fetch(self, name: str) -> Handed | None:
        """Hand out the next message."""
        consumer = self.consumers[name]
        item = self._next(consumer)
        if item is None:
            return None
        consumer.back = [it for it in consumer.back if it[1] != item.seq]
        consumer.at = max(consumer.at, item.seq)
        consumer.times[item.seq] = consumer.times.get(item.seq, 0) + 1
        handed = Handed(item, name, consumer.times[item.seq], self.clock.now)
        consumer.out[item.seq] = handed
        return handed

    def ack(self, handed: Handed) -> None:
        """Also of one that was handed out again since."""
        consumer, seq = self.consumers[handed.consumer], handed.item.seq
        if seq in consumer.out or any(it[1] == seq for it in consumer.back):
            consumer.out.pop(seq, None)
            consumer.back = [it for it in consumer.back if it[1] != seq]
            self.on_ack(handed.consumer, handed.item)

    def nak(self, handed: Handed, delay: float = 0.0) -> None:
        """Hand it out again, `delay` seconds from now."""
        consumer = self.consumers[handed.consumer]
        if consumer.out.get(handed.item.seq) is handed:
            del consumer.out[handed.item.seq]
            consumer.back.append((self.clock.now + delay, handed.item.seq))

    def expire(self) -> None:
        """Hand out again whatever has shown no sign of life for too long."""
        for consumer in self.consumers.values():
            for handed in list(consumer.out.values()):
                if self.clock.now - handed.seen >= ACK_WAIT:
                    self.nak(handed)

    def _next(self, consumer: Consumer) -> Item | None:
        items = self.streams[consumer.stream]
        for due, seq in consumer.back:
            if due <= self.clock.now:
                return items[seq - 1]
        return next((it for it in items[consumer.at :] if it.subject == consumer.subject), None)

    # -- what is asked by name -----------------------------------------------------------------------------------

    def api(self, verb: str, body: Any) -> dict[str, Any]:
        """The few questions that engines have."""
        action, stream, name = _parsed(verb, self.streams)
        left = [item for item in self.streams[stream] if item.seq not in self._gone[stream]]
        match action:
            case "STREAM.INFO":
                counts = Counter(item.subject for item in left)
                return {"state": {"last_seq": len(self.streams[stream]), "messages": len(left), "subjects": counts}}
            case "CONSUMER.INFO":
                return self._info(name)
            case "CONSUMER.LIST":
                infos = [self._info(it) for it, consumer in self.consumers.items() if consumer.stream == stream]
                return {"consumers": infos, "total": len(infos)}
            case "STREAM.PURGE":
                wanted = body.get("filter")
                purged = {it.seq for it in left if it.seq < body["seq"] and wanted in (None, it.subject)}
                self._gone[stream] |= purged
                return {"purged": len(purged)}
            case "STREAM.MSG.GET":
                for item in left:
                    if item.seq >= body["seq"] and item.subject == body["next_by_subj"]:
                        return {"message": _as_json(item)}
                raise ApiError(verb, 10037, "no message found")
        raise NotImplementedError(verb)

    def _info(self, name: str) -> dict[str, Any]:
        consumer = self.consumers[name]
        return {
            "name": name,
            "config": {"filter_subject": consumer.subject},
            "ack_floor": {"stream_seq": consumer.floor},
            "delivered": {"stream_seq": consumer.at},
            "num_pending": sum(it.subject == consumer.subject for it in self.streams[consumer.stream][consumer.at :]),
        }


def _parsed(verb: str, streams: Iterable[str]) -> tuple[str, str, str]:
    """What is asked, of which stream, of which consumer."""
    stream = next(it for it in streams if f".{it}" in verb)
    action, _, rest = verb.partition(f".{stream}")
    return action, stream, rest.removeprefix(".")


def _as_json(item: Item) -> dict[str, Any]:
    headers = "NATS/1.0\r\n" + "".join(f"{key}: {value}\r\n" for key, value in item.headers.items()) + "\r\n"
    encoded = {"data": base64.b64encode(item.data), "hdrs": base64.b64encode(headers.encode())}
    return {"seq": item.seq, "subject": item.subject, **encoded, "time": item.time.isoformat().removesuffix("+00:00")}


def done(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("it waits")
