"""The Go programs of `tests/interop/go`, built with whatever module proxy this machine's Go is configured for."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "interop"


class GoBuildError(Exception):
    """They cannot be built; the text is what Go said."""


def build() -> Path:
    """Build them, which is quick when nothing changed; the folder they are in. Raises GoBuildError."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test worker may be at it
        done = subprocess.run(
            ["go", "build", "-o", f"{FOLDER}/", "./driver", "./engine"],
            cwd=ROOT / "tests" / "interop" / "go",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise GoBuildError(done.stdout)
    return FOLDER
