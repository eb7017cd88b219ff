"""Which units may share a batch."""

from __future__ import annotations

import asyncio
from collections import deque

from conveyor_runtime.bus.units import MAX_BYTES, MAX_MESSAGES, Unit, take_batch
from conveyor_runtime.bus.wire import Message


def unit(*messages: Message) -> Unit:
    return Unit(messages, asyncio.get_running_loop().create_future(), 0.0)


def sizes(*units: Unit) -> list[int]:
    """How many units each batch takes."""
    waiting, taken = deque(units), []
    while waiting:
        taken.append(len(take_batch(waiting)))
    return taken


async def test_what_cannot_hurt_each_other_goes_together() -> None:
    assert sizes(*(unit(Message(f"s{i}", b"", msg_id=f"m{i}", expect=0)) for i in range(9))) == [9]
    assert sizes(*(unit(Message("same", b"%d" % i)) for i in range(9))) == [9]


async def test_an_expectation_never_shares_its_subject() -> None:
    assert sizes(unit(Message("a", b"", expect=0)), unit(Message("a", b"", expect=1))) == [1, 1]
    assert sizes(unit(Message("a", b"")), unit(Message("a", b"", expect=1))) == [1, 1]
    assert sizes(unit(Message("a", b"", expect=1)), unit(Message("a", b""))) == [1, 1]


async def test_the_order_is_kept_around_what_does_not_fit() -> None:
    first, second, third = (unit(Message(s, b"", expect=0)) for s in "aab")
    waiting = deque((first, second, third))
    assert take_batch(waiting) == [first]
    assert take_batch(waiting) == [second, third]


async def test_a_msg_id_stands_once_in_a_batch() -> None:
    assert sizes(unit(Message("a", b"", "m")), unit(Message("b", b"", "m"))) == [1, 1]


async def test_limits_split_batches_but_never_a_unit() -> None:
    whole = unit(*(Message(f"s{i}", b"") for i in range(MAX_MESSAGES)))
    assert sizes(unit(Message("a", b"")), whole, unit(Message("b", b""))) == [1, 1, 1]
    big = [unit(Message(f"s{i}", b"x" * (MAX_BYTES // 2))) for i in range(3)]
    assert sizes(*big) == [2, 1]


async def test_who_was_refused_goes_alone_and_who_gave_up_stays_behind() -> None:
    units = [unit(Message(f"s{i}", b"")) for i in range(5)]
    units[1].alone = True
    units[3].future.cancel()
    assert sizes(*units) == [1, 1, 2]
