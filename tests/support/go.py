"""The Go programs of `tests/interop/go`, built with whatever module proxy this machine's Go is configured for."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "interop"


class GoBuildError(Exception):
    """They cannot be built; the text is what Go said."""


def build() -> Path:
    """Build them, which is quick when nothing changed and takes minutes where Go has built nothing yet; the folder they
    are in. Raises GoBuildError."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test worker may be at it
        done = subprocess.run(
            # Nothing in what is built bears the checkout's path, so that all checkouts share what Go keeps.
            ["go", "build", "-trimpath", "-o", f"{FOLDER}/", "./driver", "./engine"],
            cwd=ROOT / "tests" / "interop" / "go",
            # Without C there is less to build, and no compiler to be needed.
            env={**os.environ, "CGO_ENABLED": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise GoBuildError(done.stdout)
    return FOLDER
