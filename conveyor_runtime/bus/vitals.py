"""The signs by which one tells that a nats-server lives."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["bytes_read", "greets"]


async def greets(url: str, seconds: float) -> bool:
    """Whether the server greets who connects, within this time. It needs no disk for that."""
    address = urlsplit(url)
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            try:
                return bool(await reader.readline())
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def bytes_read(pid: int) -> int:
    """How much a process has read from files; 0 where that cannot be told."""
    try:
        counts = Path(f"/proc/{pid}/io").read_text().split()
        return int(counts[counts.index("rchar:") + 1])
    except (OSError, ValueError, IndexError):
        return 0
