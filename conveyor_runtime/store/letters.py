"""Dead letters: copies of what nobody can work on, with the reason, kept where an operator finds them."""

from __future__ import annotations

from collections.abc import Mapping

from conveyor_runtime.bus import Bus, subjects
from conveyor_runtime.models.message import H_REASON

#: Bytes left free for headers when a message as large as the bus takes is copied.
_HEADROOM = 8 * 1024

#: Characters of a header's value, at most.
_MAX_HEADER = 1000


async def keep_dead_letter(
    bus: Bus,
    kind: str,
    data: bytes,
    *,
    msg_id: str,
    reason: str,
    subject: str,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Store a copy of a message of `kind` that came on `subject`. Data too large to be copied with its reason is cut.

    Raises BusUnavailable. The same `msg_id` twice is stored once.
    """
    noted = {**(headers or {}), H_REASON: reason, "Cv-Subject": subject}
    kept = data[: max(bus.max_payload - _HEADROOM, 0)]
    if len(kept) < len(data):
        noted["Cv-Cut"] = f"{len(data)} bytes, the first {len(kept)} are kept"
    lines = {key: " ".join(value.split())[:_MAX_HEADER] for key, value in noted.items()}
    await bus.publish(subjects.dead_letter(kind), kept, msg_id=msg_id, headers=lines)
