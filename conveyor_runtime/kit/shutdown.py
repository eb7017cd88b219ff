"""SIGTERM and SIGINT as calls: the first asks for an orderly end, each further one to hurry."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_signals(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` in the loop at each SIGTERM or SIGINT, for as long as the block lasts."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, callback)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
