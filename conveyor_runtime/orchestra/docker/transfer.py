"""Files on their way into a container or out of it, which stop when nobody waits for them any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from conveyor_runtime.errors import BackendError
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.orchestra.docker.client import Engine

__all__ = ["Passing", "copying", "put"]

T = TypeVar("T")

Passing = Callable[[Iterable[bytes]], Iterator[bytes]]
"""Passes pieces on, until it raises because the copy is given up."""


async def copying(engine: Engine, work: Callable[[Passing], T]) -> T:
    """Run `work`, which blocks and passes all it moves through what it is given, to its end. Its thread cannot be
    cancelled: when the caller is, it is made to stop, and nothing is said to be over before it has."""
    given_up = threading.Event()

    def passing(pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if given_up.is_set():
                raise BackendError("the copy was given up")
            yield piece

    working = asyncio.ensure_future(engine.transfer(work, passing))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        given_up.set()
        await finish(_over(working))
        raise


async def put(engine: Engine, container: str, path: str, archive: Iterable[bytes]) -> None:
    """Unpack a tar archive at `path`, an absolute one in the container. When this is left, nothing is written there
    any more. Raises `Gone` without the container or the path, `BackendError` if the engine does not take it."""
    try:
        taken = await copying(engine, lambda passing: engine.api.put_archive(container, path, passing(archive)))
    except asyncio.CancelledError:
        # What has arrived the engine still unpacks, and it tells nothing of a container before it is done with that.
        await finish(_over(asyncio.ensure_future(engine.call(engine.api.inspect_container, container))))
        raise
    if not taken:
        raise BackendError(f"docker did not take the files for {path}")


async def _over(work: asyncio.Future[T]) -> None:
    """Wait for what nobody wants any more, however it ends."""
    await asyncio.wait([work])
    work.exception()
