"""When a batch is worth it, by what singles and batches were seen to cost."""

from __future__ import annotations

import pytest

from conveyor_runtime.bus import pace
from conveyor_runtime.bus.pace import AGAIN, FIRST, MOST, Pace


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


def singles(paced: Pace, clock: Clock, cost: float, rounds: int = 200, told_at_once: int = 1) -> None:
    """They queue, each takes `cost` seconds, and the server tells of several at once."""
    paced.single_landed()
    paced.turn(more=True)
    for _ in range(rounds):
        clock.now += cost * told_at_once
        for _ in range(told_at_once):
            paced.single_landed()
        paced.turn(more=True)


def test_singles_that_sync_are_soon_worth_a_batch_and_others_are_not(clock: Clock) -> None:
    synced, cheap = Pace(), Pace()
    assert synced.worth == FIRST
    for paced, cost in ((synced, 0.0003), (cheap, 0.00002)):
        singles(paced, clock, cost)
        paced.batch_landed(0.003, 20)
    assert synced.worth < 15 and cheap.worth == MOST


@pytest.mark.parametrize("told_at_once", [1, 10, 100])
def test_how_many_are_told_at_once_says_nothing_of_their_cost(clock: Clock, told_at_once: int) -> None:
    paced = Pace()
    paced.batch_landed(0.003, 20)
    singles(paced, clock, 0.0003, told_at_once=told_at_once)
    assert 8 < paced.worth < 13


def test_a_single_by_itself_tells_nothing(clock: Clock) -> None:
    paced = Pace()
    paced.batch_landed(0.003, 20)
    for _ in range(50):
        clock.now += 1.0
        paced.single_landed()
        paced.turn(more=False)
    assert paced.worth == FIRST


def test_a_server_that_stood_still_does_not_end_the_batches(clock: Clock) -> None:
    paced = Pace()
    singles(paced, clock, 0.0003)
    for _ in range(10):
        paced.batch_landed(0.003, 20)
    usual = paced.worth
    paced.batch_landed(4.0, 100)
    assert paced.worth < usual * 1.6
    for _ in range(20):
        paced.batch_landed(0.003, 20)
    assert paced.worth == pytest.approx(usual, rel=0.05)


def test_after_a_while_without_one_a_batch_is_tried_again(clock: Clock) -> None:
    paced = Pace()
    singles(paced, clock, 0.00002)
    paced.batch_landed(0.003, 20)
    assert paced.worth == MOST
    clock.now += AGAIN + 0.1
    assert paced.worth == FIRST
    paced.batch_landed(0.003, 20)
    assert paced.worth == MOST
