"""A small file system for tests that fill it: mounted, so only root has one."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.required import missing


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of this size (`64m`) at `folder`. The test is skipped, or fails where `mount` is required, if there
    can be none."""
    folder.mkdir()
    if obstacle := _mount(folder, size):
        missing("mount", obstacle)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Leave so many bytes of the disk; the file that takes the rest."""
    stat = os.statvfs(folder)
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize - leave)
    return ballast


def can_mount() -> bool:
    """Whether a file system can be mounted here."""
    with tempfile.TemporaryDirectory(prefix="cv-mount-") as name:
        if _mount(Path(name), "1m"):
            return False
        subprocess.run(["umount", "--lazy", name], check=True)
    return True


def _mount(folder: Path, size: str) -> str:
    """Mount it; what is in the way."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"mount: exit code {done.returncode}"
