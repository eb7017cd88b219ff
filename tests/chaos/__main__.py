"""`python -m tests.chaos`: set by CHAOS_SEED (default: any), CHAOS_SECONDS (180) and CHAOS_REPLICAS (1, 3)."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
from pathlib import Path

import uvloop

from tests.chaos.run import Chaos, Settings
from tests.support.go import GoBuildError, build
from tests.support.required import required


def main() -> int:
    """The exit code: 0 if every promise was kept."""
    seed = os.environ.get("CHAOS_SEED") or str(secrets.randbelow(1_000_000))
    print(f"CHAOS_SEED={seed}", flush=True)
    settings = Settings(
        seed=int(seed),
        seconds=float(os.environ.get("CHAOS_SECONDS") or 180),
        replicas=int(os.environ.get("CHAOS_REPLICAS") or 1),
        keep=bool(os.environ.get("CHAOS_KEEP")),
        go_driver=_go_driver(),
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return 0 if runner.run(Chaos(settings).run()) else 1


def _go_driver() -> Path | None:
    """A driver on another SDK, where Go can make one. Raises GoBuildError where it must."""
    if shutil.which("go") is None and "go" not in required():
        return None
    try:
        return build() / "driver"
    except GoBuildError as error:
        if "go" in required():
            raise
        print(f"no Go driver among them: {str(error).splitlines()[-1]}", flush=True)
        return None


if __name__ == "__main__":
    sys.exit(main())
