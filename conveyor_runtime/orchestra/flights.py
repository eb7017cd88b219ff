"""One piece of work for all who ask for the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["Flights"]

T = TypeVar("T")


@dataclass
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    passengers: int = 0


class Flights(Generic[T]):
    """Who asks for what is under way already gets its outcome, result or exception.

    Nobody's cancellation fails the others, whoever came first (in fn the first one's did); the work is cancelled when
    the last one has given up.
    """

    def __init__(self) -> None:
        self._flights: dict[object, _Flight[T]] = {}

    async def join(self, key: object, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The outcome of the work for `key`; `work()` is begun if none is under way."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(work()))
            flight.task.add_done_callback(lambda _: self._land(key, flight))
        flight.passengers += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.passengers -= 1
            if not flight.passengers and not flight.task.done():
                self._land(key, flight)
                flight.task.cancel()

    def _land(self, key: object, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # seen, also if everybody has left
