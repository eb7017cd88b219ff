"""What a command is to read, put into a file first: a pipe would need somebody to fill it, and a worker may die."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from conveyor_runtime.orchestra.task import Stdin

__all__ = ["spool", "spooled"]


@asynccontextmanager
async def spooled(stdin: Stdin, directory: Path) -> AsyncIterator[int]:
    """A descriptor, open for reading, of a file without a name that holds all of it. Closed at the end."""
    if stdin == b"":
        descriptor = os.open(os.devnull, os.O_RDONLY)
    else:
        path = directory / f".stdin-{secrets.token_hex(8)}"
        try:
            await spool(stdin, path)
            descriptor = os.open(path, os.O_RDONLY)
        finally:
            path.unlink(missing_ok=True)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def spool(stdin: Stdin, path: Path) -> None:
    """Write all of it into a new file."""
    file = await asyncio.to_thread(path.open, "xb")
    with file:
        if isinstance(stdin, bytes):
            await asyncio.to_thread(file.write, stdin)
        else:
            async for piece in stdin:
                await asyncio.to_thread(file.write, piece)
