"""Files on their way into a container or out of it, which stop when nobody waits for them any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from conveyor_runtime.errors import BackendError
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.orchestra.docker.client import Engine

__all__ = ["Passing", "copying", "put"]

T = TypeVar("T")

Passing = Callable[[Iterable[bytes]], Iterator[bytes]]
"""Passes pieces on, until it raises because the copy is given up."""


async def copying(engine: Engine, work: Callable[[Passing], T]) -> T:
    """Run `work`, which blocks and passes all it moves through what it is given. When the caller is cancelled, it is
    made to stop, and this is not left before it has."""
    given_up = threading.Event()

    def passing(pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if given_up.is_set():
                raise BackendError("the copy was given up")
            yield piece

    return await engine.transfer(work, passing, give_up=given_up.set)


async def put(engine: Engine, container: str, path: str, archive: Iterable[bytes]) -> None:
    """Unpack a tar archive at `path`, an absolute one in the container. When this is left, nothing is written there
    any more. Raises `Gone` without the container or the path, `BackendError` if the engine does not take it."""
    has_begun = False

    def work(passing: Passing) -> Any:
        nonlocal has_begun
        has_begun = True
        return engine.api.put_archive(container, path, passing(archive))

    try:
        taken = await copying(engine, work)
    except asyncio.CancelledError:
        if has_begun:
            # What has arrived the engine still unpacks, and says nothing of the container before it is done with that.
            await finish(_settled(engine, container))
        raise
    if not taken:
        raise BackendError(f"docker did not take the files for {path}")


async def _settled(engine: Engine, container: str) -> None:
    with suppress(BackendError):  # gone, or no answer: the cancellation is what counts
        await engine.call(engine.api.inspect_container, container)
