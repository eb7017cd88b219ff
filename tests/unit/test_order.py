"""How tests are dealt out: nothing is left out, all workers have as much of the slow ones, and modules stay whole."""

from __future__ import annotations

from itertools import groupby

import pytest

from tests.support.order import dealt

PATHS = [
    *["tests/acceptance/test_a.py"] * 6,
    *["tests/acceptance/test_b.py"] * 5,
    "tests/chaos/test_chaos.py",
    *["tests/contract/test_c.py"] * 10,
    *["tests/integration/qemu/test_d.py"] * 4,
    *["tests/integration/qemu/test_e.py"] * 4,
    *["tests/unit/test_f.py"] * 37,
    *["tests/wire/test_g.py"] * 4,
]


def stretches(paths: list[str], workers: int) -> list[list[str]]:
    """What each worker begins with, as pytest-xdist cuts it."""
    order, cut = dealt(paths, workers), []
    assert sorted(order) == list(range(len(paths)))
    for worker in range(workers):
        size = len(order) // (workers - worker)
        cut.append([paths[number] for number in order[:size]])
        del order[:size]
    return cut


def test_each_worker_begins_with_slow_modules_and_ends_with_quick_ones() -> None:
    chaos, acceptance_a, acceptance_b, rest = (
        [(path, len(list(them))) for path, them in groupby(stretch)] for stretch in stretches(PATHS, 4)
    )
    assert chaos == [("tests/chaos/test_chaos.py", 1), ("tests/unit/test_f.py", 16)]
    assert acceptance_a == [("tests/acceptance/test_a.py", 6), ("tests/unit/test_f.py", 12)]
    assert acceptance_b == [("tests/acceptance/test_b.py", 5), ("tests/unit/test_f.py", 9), ("tests/wire/test_g.py", 4)]
    assert rest == [
        ("tests/integration/qemu/test_d.py", 4),
        ("tests/integration/qemu/test_e.py", 4),
        ("tests/contract/test_c.py", 10),
    ]


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 100])
def test_however_many_there_are_each_test_is_dealt_once(workers: int) -> None:
    assert sorted(path for stretch in stretches(PATHS, workers) for path in stretch) == sorted(PATHS)
    assert stretches([], workers) == [[]] * workers


def test_a_module_that_is_larger_than_a_stretch_is_cut() -> None:
    first, second = stretches([*["tests/acceptance/test_a.py"] * 9, "tests/contract/test_c.py"], 2)
    assert first[0] == "tests/contract/test_c.py"
    assert second == ["tests/acceptance/test_a.py"] * 5
