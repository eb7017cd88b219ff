"""Time that only the test moves, and event loops that run until nothing is left to do at that time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_BEGIN = datetime(2030, 1, 1, tzinfo=UTC)


class Clock:
    """One clock for all processes of a world, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """As `time.monotonic`."""
        return self.now

    def utc(self) -> datetime:
        """The wall clock; every process has the same."""
        return _BEGIN + timedelta(seconds=self.now)


class _Selector(selectors.DefaultSelector):
    """Never waits: where a loop would, it calls `idle`."""

    idle: Callable[[], None]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:
            self.idle()
            return []
        return list(super().select(0))


class VirtualLoop(asyncio.SelectorEventLoop):
    """A process's own loop: to freeze the process is to leave its loop alone."""

    def __init__(self, clock: Clock) -> None:
        selector = _Selector()
        selector.idle = self.stop
        super().__init__(selector)
        self._clock = clock

    def time(self) -> float:
        return self._clock.now

    def settle(self) -> None:
        """Run until all that is left waits for something, or for a later time."""
        self.run_forever()

    def end(self) -> None:
        """Cancel whatever is left, and close."""
        self.set_exception_handler(lambda loop, context: None)
        while tasks := asyncio.all_tasks(self):
            for task in tasks:
                task.cancel()
            self.settle()
        self.close()
