"""What a committer is given: units of messages, and which of them may share a batch."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence

from conveyor_runtime.bus import wire
from conveyor_runtime.bus.wire import Message, Receipt

__all__ = ["BATCH_HEADERS", "Unit", "take_batch"]

MAX_MESSAGES = 500
"""Messages in one batch; the server would take 1000, but gains nothing from it."""

MAX_BYTES = 8 << 20
"""Data in one batch, unless a single unit is bigger."""

BATCH_HEADERS = 256
"""Bytes left free in each message for the headers of a batch and the frame's own lines."""


class Unit:
    """What one caller wants stored, all or nothing. Raises ValueError for what no stream could take."""

    __slots__ = (
        "alone", "deadline", "expects", "first_sent", "future", "lines", "messages", "missing", "reason",
        "receipts", "retriable", "single", "size", "unknown",
    )  # fmt: skip

    def __init__(self, messages: Sequence[Message], future: asyncio.Future[list[Receipt]], deadline: float) -> None:
        self.messages = messages
        self.future = future
        self.deadline = deadline
        self.lines = [wire.header_lines(message) for message in messages]
        self.single = len(messages) == 1
        if self.single:
            only = messages[0]
            self.size, self.expects, self.retriable = len(only.data), only.expect is not None, only.msg_id is not None
        else:
            self.size = sum(len(message.data) for message in messages)
            self.expects = any(message.expect is not None for message in messages)
            self.retriable = all(message.msg_id is not None for message in messages)
        self.alone = False
        """Refused in company: to be committed again by itself."""
        self.unknown = False
        """Sent once without an answer: it may be stored already."""
        self.reason = ""
        """Why the stream would not take it for now."""
        self.first_sent = math.inf
        self.receipts: list[Receipt | None] = []
        self.missing = 0
        if not self.single:
            self._check()

    def _check(self) -> None:
        if len(self.messages) > MAX_MESSAGES:
            raise ValueError(f"a unit has at most {MAX_MESSAGES} messages, not {len(self.messages)}")
        ids = [message.msg_id for message in self.messages if message.msg_id is not None]
        if len(set(ids)) < len(ids):
            raise ValueError("a Msg-Id stands twice in one unit")
        if self.expects:
            subjects = [message.subject for message in self.messages]
            for message in self.messages:
                if message.expect is not None and subjects.count(message.subject) > 1:
                    raise ValueError(f"{message.subject} stands twice in one unit, with an expectation")

    def fail(self, exc: Exception) -> None:
        """Tell the caller, if it still waits."""
        if not self.future.done():
            self.future.set_exception(exc)

    def stored(self, receipts: list[Receipt]) -> None:
        """Tell the caller, if it still waits."""
        if not self.future.done():
            self.future.set_result(receipts)

    def start_singles(self) -> list[Receipt | None]:
        """Begin to collect one receipt per message; what still flies from an earlier round counts no more."""
        self.receipts = [None] * len(self.messages)
        self.missing = len(self.messages)
        return self.receipts


def take_batch(waiting: deque[Unit]) -> list[Unit]:
    """Take from the front what may share a batch: at least one unit, none that could refuse another for sure.

    It stops at the first unit that does not fit, so that messages keep the order they were given in.
    """
    units: list[Unit] = []
    count = size = 0
    written: set[str] = set()
    expected: set[str] = set()
    ids: set[str] = set()
    while waiting:
        unit = waiting[0]
        if unit.future.done():
            waiting.popleft()
            continue
        if units and (
            unit.alone
            or count + len(unit.messages) > MAX_MESSAGES
            or size + unit.size > MAX_BYTES
            or any(
                m.msg_id in ids or m.subject in expected or (m.expect is not None and m.subject in written)
                for m in unit.messages
            )
        ):
            break
        waiting.popleft()
        units.append(unit)
        if unit.alone:
            break
        count += len(unit.messages)
        size += unit.size
        for message in unit.messages:
            written.add(message.subject)
            if message.expect is not None:
                expected.add(message.subject)
            if message.msg_id is not None:
                ids.add(message.msg_id)
    return units
