"""Disks that take what is written, over one that is only read."""

from __future__ import annotations

import asyncio
from pathlib import Path

from conveyor_runtime.errors import BackendError, BackendUnavailable

__all__ = ["make_overlay"]


async def make_overlay(base: Path, base_format: str, overlay: Path) -> None:
    """Make a disk that shows what `base` holds and keeps what is written to itself. It replaces what is there."""
    words = ["create", "-q", "-f", "qcow2", "-F", base_format, "-b", str(base), str(overlay)]
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        made = await asyncio.create_subprocess_exec("qemu-img", *words, stdin=nothing, stdout=nothing, stderr=pipe)
    except FileNotFoundError as error:
        raise BackendUnavailable("there is no qemu-img; apt-get install qemu-utils") from error
    _, said = await made.communicate()
    if made.returncode != 0:
        raise BackendError(f"no disk can be made over {base}: {said.decode(errors='replace').strip()}")
