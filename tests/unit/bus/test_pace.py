"""When a batch is worth it, by what singles and batches were seen to cost."""

from __future__ import annotations

import pytest

from conveyor_runtime.bus import pace
from conveyor_runtime.bus.pace import AGAIN, FIRST, MOST, Pace

SYNCED, CHEAP, BATCH = 0.0003, 0.00002, 0.003


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


def singles(paced: Pace, clock: Clock, cost: float, *, bursts: int = 100, size: int = 4, late: float = 0.0) -> None:
    """Bursts, each of whose singles takes `cost` seconds and is noticed `late` by so many."""
    for _ in range(bursts):
        sent_at = clock.now
        paced.singles_sent(size)
        clock.now += cost * size + late
        for _ in range(size):
            paced.single_landed(sent_at)


def test_until_something_was_measured_a_dozen_are_worth_a_batch(clock: Clock) -> None:
    assert Pace().worth == FIRST


def test_singles_that_sync_are_soon_worth_a_batch_and_others_are_not(clock: Clock) -> None:
    synced, cheap = Pace(), Pace()
    for paced, cost in ((synced, SYNCED), (cheap, CHEAP)):
        singles(paced, clock, cost)
        paced.batch_landed(BATCH, 20)
    assert synced.worth < 15 and cheap.worth == MOST


@pytest.mark.parametrize("size", [1, 10, 100])
def test_how_many_leave_at_once_says_nothing_of_their_cost(clock: Clock, size: int) -> None:
    paced = Pace()
    paced.batch_landed(BATCH, 20)
    singles(paced, clock, SYNCED, size=size)
    assert 8 < paced.worth < 13


def test_a_busy_process_or_server_does_not_make_singles_dear(clock: Clock) -> None:
    """With batches of others on the same stream, or a loop that comes to its answers late, most bursts seem to take
    many times what they cost."""
    paced = Pace()
    for _ in range(100):
        singles(paced, clock, CHEAP, bursts=19, late=0.010)
        singles(paced, clock, CHEAP, bursts=1)
        paced.batch_landed(4 * BATCH, 20)
    assert paced.worth > 50


def test_singles_that_have_become_dear_are_noticed_in_time(clock: Clock) -> None:
    paced = Pace()
    singles(paced, clock, CHEAP)
    paced.batch_landed(BATCH, 20)
    assert paced.worth == MOST
    singles(paced, clock, SYNCED, bursts=2000)
    assert paced.worth < 20


def test_what_was_sent_before_a_burst_does_not_count_as_its_own(clock: Clock) -> None:
    paced = Pace()
    paced.batch_landed(BATCH, 20)
    for _ in range(100):
        before = clock.now
        paced.singles_sent(2)
        paced.singles_sent(4)  # while the two are under way, so not measured
        clock.now += 6 * SYNCED
        for _ in range(2):
            paced.single_landed(before)
        sent_at = clock.now = clock.now + 1e-6
        paced.singles_sent(4)
        for _ in range(4):
            paced.single_landed(before)
        clock.now += 4 * SYNCED
        for _ in range(4):
            paced.single_landed(sent_at)
    assert 8 < paced.worth < 13


def test_an_answer_that_never_came_does_not_end_the_measuring(clock: Clock) -> None:
    paced = Pace()
    paced.singles_sent(4)
    clock.now += 5.0  # the connection broke: those that follow stand in for them
    singles(paced, clock, CHEAP)
    paced.batch_landed(BATCH, 20)
    assert paced.worth == MOST


def test_a_server_that_stood_still_does_not_end_the_batches(clock: Clock) -> None:
    paced = Pace()
    singles(paced, clock, SYNCED)
    for _ in range(50):
        paced.batch_landed(BATCH, 20)
    usual = paced.worth
    paced.batch_landed(4.0, 100)
    assert paced.worth < usual * 1.6
    for _ in range(20):
        paced.batch_landed(BATCH, 20)
    assert paced.worth == pytest.approx(usual, rel=0.05)


def test_after_a_while_without_one_a_batch_is_tried_again(clock: Clock) -> None:
    paced = Pace()
    singles(paced, clock, CHEAP)
    paced.batch_landed(BATCH, 20)
    assert paced.worth == MOST
    clock.now += AGAIN + 0.1
    assert paced.worth == FIRST
    paced.batch_landed(BATCH, 20)
    assert paced.worth == MOST
