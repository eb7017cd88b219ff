"""Archives on their way between the host and a guest: files of the share, which both see."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

from conveyor_runtime.errors import BackendError
from conveyor_runtime.orchestra.qemu.vm import JOBS, Vm

__all__ = ["passing", "sent"]


@contextlib.contextmanager
def passing(vm: Vm) -> Iterator[tuple[Path, str]]:
    """A name for a file as the host sees it and as the guest does. Removed at the end."""
    name = f"tar-{secrets.token_hex(8)}"
    path = vm.share / JOBS / name
    try:
        yield path, f"/run/conveyor/share/{JOBS}/{name}"
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def sent(vm: Vm, pieces: Iterable[bytes]) -> AsyncIterator[str]:
    """The path in the guest of a file that holds all pieces."""
    with passing(vm) as (path, inside):
        try:
            await asyncio.to_thread(_write, path, pieces)
        except OSError as error:
            raise BackendError(f"cannot hand files to the guest: {error}") from error
        yield inside


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
