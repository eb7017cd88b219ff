"""Things made ready before anybody asks: a few of each kind, each handed out once, replaced in the background."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from conveyor_runtime.kit.backoff import exponential
from conveyor_runtime.kit.shielded import finish

__all__ = ["WarmPool"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds before what could not be made is tried again


@dataclass
class _Shelf(Generic[T]):
    """Those of one kind. Times are the loop's."""

    size: int
    until: float
    """When nobody wants it filled any more."""
    ready: deque[tuple[float, T]] = field(default_factory=deque)
    """When each has stood for too long, oldest first."""
    failures: int = 0
    again_at: float = 0.0

    def lacks(self, now: float) -> bool:
        return len(self.ready) < self.size and now < self.until

    def due(self, now: float) -> float:
        """When there is something to do next."""
        ends = [at for at, _ in self.ready] + ([self.until] if now < self.until else [])
        return min([*ends, max(self.again_at, now)] if self.lacks(now) else ends, default=math.inf)


class WarmPool(Generic[T]):
    """Of each kind that is kept, as many as are wanted; one that nobody took is replaced after `ttl` seconds.

    One after another is made, so that runs do not wait for those who prepare for them.
    """

    def __init__(
        self,
        prepare: Callable[[str], Awaitable[AbstractContextManager[object]]],
        make: Callable[[str], Awaitable[T]],
        discard: Callable[[T], Awaitable[None]],
        *,
        ttl: float,
    ) -> None:
        """`prepare` may take long and be cancelled; what it returns is held while `make`, which is not cancelled,
        makes one. `discard` takes one away that will not be used."""
        self._prepare, self._make, self._discard = prepare, make, discard
        self._ttl = ttl
        self._shelves: dict[str, _Shelf[T]] = {}
        self._news = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()
        self._tending: asyncio.Task[None] | None = None

    def keep(self, kind: str, size: int, *, seconds: float = math.inf) -> None:
        """Have `size` of a kind ready, for so long from now on; asked again, the more and the longer counts."""
        shelf = self._shelves.setdefault(kind, _Shelf(0, 0.0))
        shelf.size = max(shelf.size, size)
        shelf.until = max(shelf.until, asyncio.get_running_loop().time() + seconds)
        if self._tending is None:
            self._tending = asyncio.create_task(self._tend())
        self._news.set()

    def forget(self, kind: str) -> None:
        """Keep none of a kind any more."""
        shelf = self._shelves.pop(kind, None)
        for _, member in shelf.ready if shelf else ():
            self.drop(member)

    def ready(self, kind: str) -> int | None:
        """How many stand ready; None if the kind is not kept."""
        shelf = self._shelves.get(kind)
        return None if shelf is None else len(shelf.ready)

    def take(self, kind: str) -> T | None:
        """The oldest of a kind, for the one who asks alone; None if there is none."""
        shelf = self._shelves.get(kind)
        self._news.set()
        if shelf is None or not shelf.ready or shelf.ready[0][0] <= asyncio.get_running_loop().time():
            return None
        return shelf.ready.popleft()[1]

    def drop(self, member: T) -> None:
        """Take one away that was taken, but is of no use."""
        task = asyncio.create_task(self._remove(member))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        """Make no more, and take away what stands ready."""
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.wait([self._tending])
        for kind in list(self._shelves):
            self.forget(kind)
        if self._leaving:
            await asyncio.wait(self._leaving)

    async def _tend(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._news.clear()
            now = loop.time()
            for kind, shelf in list(self._shelves.items()):
                while shelf.ready and shelf.ready[0][0] <= now:
                    self.drop(shelf.ready.popleft()[1])
                if now >= shelf.until and not shelf.ready:
                    self._shelves.pop(kind, None)
                elif shelf.lacks(now) and shelf.again_at <= now:
                    await self._fill(kind, shelf)
                    self._news.set()
            due = min((shelf.due(loop.time()) for shelf in self._shelves.values()), default=math.inf)
            try:
                async with asyncio.timeout(None if due == math.inf else due - loop.time()):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _fill(self, kind: str, shelf: _Shelf[T]) -> None:
        try:
            with await self._prepare(kind):
                await finish(self._add(kind, shelf))
        except Exception as error:  # noqa: BLE001 - whatever it was, runs start without, and it is tried again
            shelf.failures += 1
            pause = exponential(shelf.failures, initial=_FIRST_PAUSE, maximum=_LONGEST_PAUSE)
            shelf.again_at = asyncio.get_running_loop().time() + pause
            log.warning("cannot make a %s ready: %s", kind, error, extra={"action": "warm_failed", "kind": kind})

    async def _add(self, kind: str, shelf: _Shelf[T]) -> None:
        member = await self._make(kind)
        shelf.failures = 0
        if self._shelves.get(kind) is shelf:
            shelf.ready.append((asyncio.get_running_loop().time() + self._ttl, member))
        else:  # forgotten meanwhile
            self.drop(member)

    async def _remove(self, member: T) -> None:
        try:
            await self._discard(member)
        except Exception as error:  # noqa: BLE001 - the janitor finds it
            log.warning("cannot take away what was made ready: %s", error, extra={"action": "warm_left"})
