"""One worker per key at a time, any number of keys at once; a key added while its worker runs gets exactly one more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from conveyor_runtime.kit.backoff import exponential

K = TypeVar("K", bound=Hashable)

log = logging.getLogger(__name__)


class KeyedQueue(Generic[K]):
    """Calls `work(key)` for each key added. A failure is logged and tried again with backoff until it succeeds."""

    def __init__(self, work: Callable[[K], Awaitable[None]], *, name: str) -> None:
        self._work = work
        self._name = name
        self._running: dict[K, asyncio.Task[None]] = {}
        self._again: set[K] = set()
        self._waiting: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._running) + len(self._waiting)

    def add(self, key: K) -> None:
        """Have `key` worked on, now or right after the pass under way."""
        if self._closed:
            return
        if (handle := self._waiting.pop(key, None)) is not None:
            handle.cancel()
        if key in self._running:
            self._again.add(key)
            return
        self._running[key] = asyncio.create_task(self._pass(key), name=f"{self._name}:{key}")

    def add_later(self, key: K, delay: float) -> None:
        """Have `key` worked on `delay` seconds from now, unless it is worked on before. Of several times, the
        earliest counts."""
        loop = asyncio.get_running_loop()
        if self._closed:
            return
        if (known := self._waiting.get(key)) is not None:
            if known.when() <= loop.time() + delay:
                return
            known.cancel()
        self._waiting[key] = loop.call_later(max(delay, 0.0), self._wake, key)

    def _wake(self, key: K) -> None:
        self._waiting.pop(key, None)
        self.add(key)

    async def _pass(self, key: K) -> None:
        failed = False
        try:
            await self._work(key)
            self._failures.pop(key, None)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            failed = True
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            log.warning("%s of %s failed and is tried again: %s", self._name, key, error, exc_info=failures == 3)
        finally:
            del self._running[key]
            if failed:
                self._again.discard(key)
                self.add_later(key, exponential(self._failures[key], initial=0.2, maximum=15.0))
            elif key in self._again:
                self._again.discard(key)
                self.add(key)

    async def close(self) -> None:
        """Stop: what runs is cancelled, what waits is dropped."""
        self._closed = True
        for handle in self._waiting.values():
            handle.cancel()
        self._waiting.clear()
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
