"""Growing waits."""

from __future__ import annotations

import random

__all__ = ["Backoff", "exponential"]


def exponential(
    attempt: int, *, initial: float, maximum: float, factor: float = 2.0, jitter: float | None = None
) -> float:
    """Seconds to wait after the `attempt`-th failure (from 1): `initial`, times `factor` each time, up to `maximum`.

    `jitter` in 0..1 (None = random) picks a point between half the wait and the whole of it, so that many who failed
    together do not come back together.
    """
    full = min(initial * factor ** min(max(attempt, 1) - 1, 64), maximum)
    return full * (0.5 + 0.5 * (random.random() if jitter is None else jitter))  # noqa: S311 - not a secret


class Backoff:
    """The same waits one after another, for a loop: `next()` grows, `reset()` starts over."""

    def __init__(self, initial: float, maximum: float) -> None:
        self._initial = initial
        self._maximum = maximum
        self._failures = 0

    def next(self) -> float:
        """Seconds to wait now."""
        self._failures += 1
        return exponential(self._failures, initial=self._initial, maximum=self._maximum)

    def reset(self) -> None:
        """It worked: the next failure is the first again."""
        self._failures = 0
