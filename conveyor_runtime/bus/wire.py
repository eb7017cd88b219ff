"""Frames and answers of the NATS protocol as this room uses it: pure, and on the hot path.

Frames are built here rather than by the client because a group commit writes hundreds at once, and
because what the client buffers while disconnected would still be sent minutes later.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
from nats.aio.msg import Msg

from conveyor_runtime.errors import BusError

__all__ = [
    "Message",
    "PubAck",
    "Receipt",
    "StoredMsg",
    "assemble",
    "decode_ack",
    "header_lines",
    "parse_header_lines",
    "parse_headers",
    "parse_time",
    "status_of",
]

_SUBJECT = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Message:
    """One message to store.

    `msg_id` makes a repeated publish harmless for two minutes. `expect` is the revision the subject must have
    (0 = must not exist). `headers` go on the wire as they are: one line each. `ttl` in seconds, at least 1;
    the stream must allow it.
    """

    subject: str
    data: bytes
    msg_id: str | None = None
    expect: int | None = None
    headers: Mapping[str, str] | None = None
    ttl: float | None = None


@dataclass(slots=True)
class Receipt:
    """The server has stored it under `seq`; `duplicate` when it had before, by its Msg-Id."""

    seq: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class StoredMsg:
    """A message as it lies in its stream."""

    seq: int
    subject: str
    data: bytes
    headers: Mapping[str, str]
    time: datetime


@dataclass(slots=True)
class PubAck:
    """The stream's answer to a publish: stored (`error` 0), or why not.

    `status` is the HTTP-like class of the error: 503 and 429 mean "not now".
    """

    seq: int = 0
    duplicate: bool = False
    error: int = 0
    status: int = 0
    description: str = ""

    @property
    def transient(self) -> bool:
        """Refused for now: nothing was stored, and the same publish may succeed a moment later."""
        return self.status in (429, 503)


def header_lines(message: Message) -> bytes:
    """The header lines of `message`, ready for `assemble`.

    Raises BusError for what would break the protocol. It is checked here because one bad line makes the server
    close the connection of everybody in the process.
    """
    if _SUBJECT.fullmatch(message.subject) is None:
        raise BusError(f"not a subject: {message.subject!r}")
    lines = [f"{name}: {value}\r\n" for name, value in (message.headers or {}).items()]
    if message.msg_id is not None:
        lines.append(f"Nats-Msg-Id: {message.msg_id}\r\n")
    if message.expect is not None:
        lines.append(f"Nats-Expected-Last-Subject-Sequence: {message.expect}\r\n")
    if message.ttl is not None:
        lines.append(f"Nats-TTL: {max(1, math.ceil(message.ttl))}\r\n")
    text = "".join(lines)
    if text.count("\n") != len(lines) or text.count("\r") != len(lines):
        raise BusError(f"a header or the Msg-Id of {message.subject} has a line break")
    return text.encode()


def assemble(subject: str, lines: bytes, data: bytes, reply: str = "") -> bytes:
    """The frame that publishes `data` with ready header lines."""
    if not lines:
        return f"PUB {subject} {reply} {len(data)}\r\n".encode() + data + b"\r\n"
    head = len(lines) + 12  # with the version line before and the empty line after
    command = f"HPUB {subject} {reply} {head} {head + len(data)}\r\nNATS/1.0\r\n".encode()
    return b"".join((command, lines, b"\r\n", data, b"\r\n"))


def status_of(msg: Msg) -> str | None:
    """The status a message from the server carries instead of data ("404", "503"), if any."""
    return msg.headers.get("Status") if msg.headers else None


def decode_ack(msg: Msg) -> PubAck:
    """Read the answer to a publish; anything unreadable is an error, never a success."""
    status = status_of(msg)
    if status is not None:
        return PubAck(error=-1, status=int(status), description="no stream takes this subject")
    try:
        answer: dict[str, Any] = orjson.loads(msg.data)
        error = answer.get("error")
        if error is None:
            return PubAck(answer["seq"], answer.get("duplicate", False))
        return PubAck(0, False, error.get("err_code", -1), error.get("code", 500), error.get("description", ""))
    except (ValueError, KeyError, AttributeError):
        return PubAck(error=-1, status=500, description=f"unreadable answer {bytes(msg.data[:80])!r}")


class Origin(NamedTuple):
    """What a consumer tells about a message it delivers, in the subject of its acknowledgement."""

    num_delivered: int
    stream_seq: int
    consumer_seq: int
    time_ns: int
    pending: int


def origin(reply: str) -> Origin:
    """Read the acknowledgement subject; its longer form names domain and account first."""
    tokens = reply.split(".")
    first = 4 if len(tokens) == 9 else 6
    return Origin(*map(int, tokens[first : first + 5]))


def parse_headers(raw: bytes) -> dict[str, str]:
    """Header block as stored by the server (`NATS/1.0` line first) to a mapping; the first value wins."""
    return parse_header_lines(raw.partition(b"\r\n")[2])


def parse_header_lines(raw: bytes) -> dict[str, str]:
    """As `parse_headers`, of the lines that follow the first."""
    headers: dict[str, str] = {}
    for line in raw.decode("utf-8", "replace").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            headers.setdefault(name, value.strip())
    return headers


def time_of(ns: int) -> datetime:
    """Nanoseconds since the epoch to a UTC time."""
    return datetime.fromtimestamp(ns // 1_000_000_000, UTC).replace(microsecond=ns % 1_000_000_000 // 1000)


def parse_time(text: str) -> datetime:
    """An RFC 3339 time of the server, nanoseconds cut to microseconds."""
    stem, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{stem}.{fraction[:6]:0<6}").replace(tzinfo=UTC)
