"""Dead letters: copies of what nobody can work on, with the reason, kept where an operator finds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from conveyor_runtime.bus import Bus, StoredMsg, subjects
from conveyor_runtime.bus.messages import delete_message, next_by_subject
from conveyor_runtime.bus.streams import DLQ, stream_info
from conveyor_runtime.models.letter import DeadLetter
from conveyor_runtime.models.message import H_ATTEMPT, H_REASON, H_RUN, H_STEP

H_SUBJECT = "Cv-Subject"
H_CUT = "Cv-Cut"

#: Bytes left free for headers when a message as large as the bus takes is copied.
_HEADROOM = 8 * 1024

#: Characters of a header's value, at most.
_MAX_HEADER = 1000

_ALL = subjects.dead_letter("all").removesuffix("all") + ">"


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

    Of its `headers` ours are kept. Raises BusUnavailable. The same `msg_id` twice is stored once.
    """
    noted = {key: value for key, value in (headers or {}).items() if key.startswith("Cv-")}
    noted |= {H_REASON: reason, H_SUBJECT: subject}
    kept = data[: max(bus.max_payload - _HEADROOM, 0)]
    if len(kept) < len(data):
        noted[H_CUT] = f"{len(data)} bytes, the first {len(kept)} are kept"
    lines = {key: " ".join(value.split())[:_MAX_HEADER] for key, value in noted.items()}
    await bus.publish(subjects.dead_letter(kind), kept, msg_id=msg_id, headers=lines)


@dataclass(frozen=True, slots=True)
class Letter:
    """A kept message: what is told about it, the headers it had, its bytes."""

    about: DeadLetter
    headers: Mapping[str, str]
    data: bytes


class Letters:
    """The dead letters there are. Every method raises BusError."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def list(self, *, after: int = 0, limit: int) -> list[Letter]:
        """The first `limit` letters behind the one with the id `after`, oldest first."""
        found: list[Letter] = []
        while len(found) < limit:
            message = await next_by_subject(self._bus, DLQ, _ALL, after + 1)
            if message is None:
                break
            found.append(_read(message))
            after = message.seq
        return found

    async def get(self, letter_id: int) -> Letter | None:
        """The letter of that id."""
        message = await next_by_subject(self._bus, DLQ, _ALL, letter_id)
        return _read(message) if message is not None and message.seq == letter_id else None

    async def remove(self, letter_id: int) -> bool:
        """Remove a letter; False if it is not there."""
        # Of a sequence that never was the server says something else than of one that is gone.
        return await self.get(letter_id) is not None and await delete_message(self._bus, DLQ, letter_id)

    async def purge(self, before: datetime | None = None) -> int:
        """Remove those kept before that time (None = all there are now); how many they were."""
        info = await stream_info(self._bus, DLQ)
        if info is None:
            return 0
        low, high = int(info["state"]["first_seq"]), int(info["state"]["last_seq"]) + 1
        while before is not None and low < high:
            # They lie in the order of time, with holes where some were removed.
            middle = (low + high) // 2
            message = await next_by_subject(self._bus, DLQ, _ALL, middle)
            if message is None or message.time >= before:
                high = middle
            else:
                low = message.seq + 1
        answer = await self._bus.api(f"STREAM.PURGE.{DLQ}", {"seq": high})
        return int(answer["purged"])


def _read(message: StoredMsg) -> Letter:
    noted = message.headers
    attempt = noted.get(H_ATTEMPT, "")
    about = DeadLetter(
        id=message.seq,
        kind=message.subject.rpartition(".")[2],
        reason=noted.get(H_REASON, ""),
        subject=noted.get(H_SUBJECT, ""),
        time=message.time,
        run_id=noted.get(H_RUN, ""),
        step=noted.get(H_STEP, ""),
        attempt=int(attempt) if attempt.isdecimal() else 0,
        size=len(message.data),
        cut=H_CUT in noted,
    )
    own = (H_REASON, H_SUBJECT, H_CUT)
    had = {key: value for key, value in noted.items() if key.startswith("Cv-") and key not in own}
    return Letter(about, had, message.data)
