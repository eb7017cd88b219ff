"""A small image with a shell for the demo, from wherever one can be had: the engine, this machine, a registry."""

from __future__ import annotations

import io
import os
import platform
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conveyor_runtime.errors import BackendError, ImageNotFound
from conveyor_runtime.orchestra.docker.client import Engine
from conveyor_runtime.orchestra.docker.image import pull

__all__ = ["demo_image"]

NAME = "conveyor-demo/busybox"
_TAG = "latest"
_KNOWN = (f"{NAME}:{_TAG}", "busybox:latest", "busybox:stable", "alpine:latest")

#: Docker's words for what Python calls otherwise.
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


async def demo_image(say: Callable[[str], None]) -> str:
    """The name of an image with sh and the usual small commands; `say` is told what takes time.

    Raises `BackendUnavailable` if no engine answers, `BackendError` if it has no image and none can be had.
    """
    engine = await Engine.open()
    try:
        for name in _KNOWN:
            try:
                await engine.call(engine.api.inspect_image, name)
            except ImageNotFound:
                continue
            return name
        busybox = static_busybox()
        if busybox is not None and await _same_machine(engine):
            say(f"making the image {NAME} of {busybox}")
            await engine.call(engine.api.import_image_from_data, root_of(busybox), NAME, _TAG)
            return f"{NAME}:{_TAG}"
        say("pulling the image busybox")
        await pull(engine, "busybox:latest", None, _quietly)
        return "busybox:latest"
    finally:
        await engine.close()


async def _quietly(line: str) -> None:
    """That it is pulled has been said."""


def static_busybox() -> Path | None:
    """A busybox that can be the only file of an image: one that needs no dynamic loader."""
    for place in (shutil.which("busybox"), "/bin/busybox", "/usr/bin/busybox"):
        if place is None or not os.access(place, os.X_OK):
            continue
        if re.search(rb"/lib\S*/ld-", Path(place).read_bytes()[:4096]) is None:
            return Path(place).resolve()
    return None


async def _same_machine(engine: Engine) -> bool:
    """Whether the engine runs programs of this machine's kind; it may be a remote one."""
    info: dict[str, Any] = await engine.call(engine.api.info)
    here, there = platform.machine().lower(), str(info.get("Architecture", "")).lower()
    return _MACHINES.get(here, here) == _MACHINES.get(there, there)


def root_of(busybox: Path) -> bytes:
    """A root file system as a tar archive: busybox, a link to it for each of its commands, a few directories."""
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=False)
    commands = listed.stdout.split()
    if "sh" not in commands:
        raise BackendError(f"{busybox} has no sh in it")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("var", 0o755)):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            tar.addfile(folder)
        _add(tar, "bin/busybox", busybox.read_bytes(), 0o755)
        _add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)
        _add(tar, "etc/group", b"root:x:0:\n", 0o644)
        for command in commands:
            if command == "busybox":
                continue
            link = tarfile.TarInfo(f"bin/{command}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return archive.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    tar.addfile(member, io.BytesIO(content))
