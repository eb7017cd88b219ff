"""What a blocking source yields, brought into the event loop by a thread of its own, a bounded amount ahead."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["ByteReader", "ThreadedReader"]

T = TypeVar("T")

_DEPTH = 16  # items read ahead of a slow consumer
_AHEAD = 1 << 20  # bytes read ahead of a slow consumer


class ThreadedReader(Generic[T]):
    """One item after another."""

    def __init__(self, read: Callable[[], T | None], stop: Callable[[], None]) -> None:
        """`read` blocks for the next item and returns None at the end; `stop` makes a blocked `read` return."""
        self._read = read
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[T | Exception | None] = asyncio.Queue()
        self._room = threading.Semaphore(_DEPTH)
        self._closed = False
        threading.Thread(target=self._run, name="docker-stream", daemon=True).start()

    async def next(self) -> T | None:
        """The next item, None at the end. Raises what `read` raised."""
        item = await self._items.get()
        if item is None or isinstance(item, Exception):
            self._items.put_nowait(item)  # the end stays the end, however often one asks
            if isinstance(item, Exception):
                raise item
            return None
        self._room.release()
        return item

    def close(self) -> None:
        """Stop reading. Items not taken are dropped."""
        self._closed = True
        self._room.release()
        self._stop()

    def _run(self) -> None:
        last: Exception | None = None
        try:
            while not self._closed:
                item = self._read()
                if item is None:
                    break
                self._room.acquire()
                self._post(item)
        except Exception as error:  # noqa: BLE001 - handed to the consumer
            last = error
        self._post(last)

    def _post(self, item: T | Exception | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            self._closed = True


class ByteReader:
    """Bytes, as many at once as have come: a source of small pieces does not cost a change of threads for each."""

    def __init__(self, read: Callable[[], bytes | None], stop: Callable[[], None]) -> None:
        """As for `ThreadedReader`."""
        self._read = read
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._change = threading.Condition()
        self._pieces: list[bytes] = []
        self._size = 0
        self._ended = False
        self._closed = False
        self._error: Exception | None = None
        threading.Thread(target=self._run, name="docker-stream", daemon=True).start()

    async def next(self) -> bytes | None:
        """Some bytes, None at the end. Raises what `read` raised."""
        while True:
            with self._change:
                if self._pieces:
                    data = b"".join(self._pieces)
                    self._pieces.clear()
                    self._size = 0
                    self._change.notify()
                    return data
                if self._ended:
                    if self._error is not None:
                        raise self._error
                    return None
                self._news.clear()
            await self._news.wait()

    def close(self) -> None:
        """Stop reading. What was not taken is dropped."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._stop()

    def _run(self) -> None:
        error: Exception | None = None
        try:
            while (data := self._read()) is not None and self._put(data):
                pass
        except Exception as failure:  # noqa: BLE001 - handed to the consumer
            error = failure
        with self._change:
            self._error = error
            self._ended = True
        self._tell()

    def _put(self, data: bytes) -> bool:
        with self._change:
            self._change.wait_for(lambda: self._closed or self._size < _AHEAD)
            first = not self._pieces
            self._pieces.append(data)
            self._size += len(data)
            closed = self._closed
        if first:
            self._tell()
        return not closed

    def _tell(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            self._closed = True
