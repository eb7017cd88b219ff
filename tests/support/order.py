"""The order in which several workers run the tests, so that all end at about the same time.

pytest-xdist gives each worker a stretch of as many tests as any other's, and lets one that is done take the second half
of what another has left. So each stretch begins with slow modules, dealt so that all have as much of them, and ends
with the quick tests, which are what is taken. A slow module stays in one piece: what its tests share is started once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["dealt"]

#: About how many seconds a test takes, by the beginning of its path; others are quick.
_SECONDS = {
    "tests/chaos/": 120.0,
    "tests/interop/": 10.0,
    "tests/acceptance/": 5.0,
    "tests/integration/": 1.0,
    "tests/contract/": 0.5,
}

#: Its modules share a machine of their worker's.
_ONE_PIECE = "tests/integration/qemu/"


@dataclass
class _Stretch:
    room: int
    seconds: float = 0.0
    tests: list[int] = field(default_factory=list)


def dealt(paths: Sequence[str], workers: int) -> list[int]:
    """The order for tests whose files' `paths` are given: numbers of them."""
    slow: dict[str, list[int]] = {}
    quick: list[int] = []
    for number, path in enumerate(paths):
        if _seconds(path):
            slow.setdefault(_ONE_PIECE if path.startswith(_ONE_PIECE) else path, []).append(number)
        else:
            quick.append(number)
    stretches = [_Stretch((len(paths) + worker) // workers) for worker in range(workers)]
    for path in sorted(slow, key=lambda path: -_seconds(path) * len(slow[path])):
        fitting = [it for it in stretches if it.room - len(it.tests) >= len(slow[path])]
        if not fitting:
            quick += slow[path]
            continue
        least = min(fitting, key=lambda it: it.seconds)
        least.tests += slow[path]
        least.seconds += _seconds(path) * len(slow[path])
    for it in stretches:
        it.tests.sort(key=lambda number: -_seconds(paths[number]))  # stable: a module stays in one piece
        wanted = it.room - len(it.tests)
        it.tests += quick[:wanted]
        del quick[:wanted]
    return [number for it in stretches for number in it.tests]


def _seconds(path: str) -> float:
    return next((seconds for folder, seconds in _SECONDS.items() if path.startswith(folder)), 0.0)
