"""What a stream's no means: its codes, and how the guilty message of a refused unit is found."""

from __future__ import annotations

from conveyor_runtime.bus.connection import Bus
from conveyor_runtime.bus.errors import ApiError
from conveyor_runtime.bus.messages import last_by_subject
from conveyor_runtime.bus.units import Unit
from conveyor_runtime.bus.wire import PubAck, Receipt
from conveyor_runtime.errors import RevisionConflict

__all__ = ["CONFLICTS", "DUPLICATE", "NOT_ATOMIC", "passing", "settle"]

CONFLICTS = frozenset((10071, 10164))
"""An expected revision is not the one stored."""

DUPLICATE = 10201
"""A batch has a Msg-Id that is stored already."""

NOT_ATOMIC = 10174
"""The stream takes no batches: its `allow_atomic` is off."""

_INCOMPLETE = 10176
_TOO_MANY_OPEN = 10210


def passing(ack: PubAck) -> bool:
    """Whether the refusal says "not now": nothing was stored, and the same thing may succeed a moment later.

    An incomplete batch is one whose beginning went to a server that has restarted or lost its lead since.
    """
    return ack.transient or ack.error in (_INCOMPLETE, _TOO_MANY_OPEN)


async def settle(bus: Bus, stream: str, unit: Unit, ack: PubAck) -> list[Receipt]:
    """Find out what became of a unit that was refused for a revision or a Msg-Id.

    Returns receipts when what is stored is this very unit, by its Msg-Ids: an earlier sending succeeded and its
    answer was lost. Otherwise raises RevisionConflict naming the subject somebody else wrote, or ApiError.
    """
    found = [await last_by_subject(bus, stream, message.subject) for message in unit.messages]
    pairs = list(zip(unit.messages, found, strict=True))
    if (unit.unknown or ack.error == DUPLICATE) and all(
        message.msg_id is not None and stored and stored.headers.get("Nats-Msg-Id") == message.msg_id
        for message, stored in pairs
    ):
        return [Receipt(stored.seq, True) for stored in found if stored]
    expecting = [(message, stored) for message, stored in pairs if message.expect is not None]
    for message, stored in expecting:
        if (stored.seq if stored else 0) != message.expect:
            raise RevisionConflict(message.subject)
    if ack.error in CONFLICTS and expecting:
        # Changed and, by a purge, back to what we expected, between the refusal and this look.
        raise RevisionConflict(expecting[0][0].subject)
    raise ApiError(stream, ack.error, ack.description)
