"""Single stored messages: read from the stream's leader, or delete."""

from __future__ import annotations

import base64
from typing import Any

from conveyor_runtime.bus.connection import Bus
from conveyor_runtime.bus.errors import ApiError
from conveyor_runtime.bus.wire import StoredMsg, parse_headers, parse_time

__all__ = ["delete_message", "last_by_subject", "next_by_subject"]

_NO_MESSAGE = 10037
_SEQUENCE_NOT_FOUND = 10043


async def last_by_subject(bus: Bus, stream: str, subject: str) -> StoredMsg | None:
    """The newest message on `subject`, or None. Reads from the leader, so it sees every write acknowledged before."""
    return await _get(bus, stream, {"last_by_subj": subject})


async def next_by_subject(bus: Bus, stream: str, subject: str, seq: int) -> StoredMsg | None:
    """The first message on `subject` (wildcards allowed) at sequence `seq` or later, or None."""
    return await _get(bus, stream, {"next_by_subj": subject, "seq": max(seq, 1)})


async def _get(bus: Bus, stream: str, query: dict[str, Any]) -> StoredMsg | None:
    try:
        message = (await bus.api(f"STREAM.MSG.GET.{stream}", query))["message"]
    except ApiError as exc:
        if exc.code == _NO_MESSAGE:
            return None
        raise
    return StoredMsg(
        seq=message["seq"],
        subject=message["subject"],
        data=base64.b64decode(message.get("data", "")),
        headers=parse_headers(base64.b64decode(message["hdrs"])) if "hdrs" in message else {},
        time=parse_time(message["time"]),
    )


async def delete_message(bus: Bus, stream: str, seq: int) -> bool:
    """Delete one message; False when it is not there (any more)."""
    try:
        await bus.api(f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True})
    except ApiError as exc:
        if exc.code in (_NO_MESSAGE, _SEQUENCE_NOT_FOUND):
            return False
        raise
    return True
