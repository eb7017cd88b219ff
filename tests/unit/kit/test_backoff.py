"""Growing waits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conveyor_runtime.kit.backoff import Backoff, exponential


@pytest.mark.parametrize(("attempt", "wait"), [(-1, 1), (0, 1), (1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (10_000, 60)])
def test_it_doubles_up_to_the_maximum(attempt: int, wait: float) -> None:
    assert exponential(attempt, initial=1, maximum=60, jitter=1.0) == wait
    assert exponential(attempt, initial=1, maximum=60, jitter=0.0) == wait / 2


@settings(deadline=None)
@given(st.integers(1, 1000))
def test_the_random_point_lies_in_the_upper_half(attempt: int) -> None:
    assert (
        0.5 <= exponential(attempt, initial=1, maximum=60) / exponential(attempt, initial=1, maximum=60, jitter=1) <= 1
    )


def test_a_loop_starts_over_after_a_success() -> None:
    backoff = Backoff(1, 60)
    waits = [backoff.next() for _ in range(4)]
    assert waits[3] >= 4 > 1 >= waits[0]
    backoff.reset()
    assert backoff.next() <= 1
