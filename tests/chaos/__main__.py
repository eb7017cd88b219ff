"""`python -m tests.chaos`: set by CHAOS_SEED (default: any), CHAOS_SECONDS (180) and CHAOS_REPLICAS (1, 3)."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys

import uvloop

from tests.chaos.run import Chaos, Settings


def main() -> int:
    """The exit code: 0 if every promise was kept."""
    seed = os.environ.get("CHAOS_SEED") or str(secrets.randbelow(1_000_000))
    print(f"CHAOS_SEED={seed}", flush=True)
    settings = Settings(
        seed=int(seed),
        seconds=float(os.environ.get("CHAOS_SECONDS") or 180),
        replicas=int(os.environ.get("CHAOS_REPLICAS") or 1),
        keep=bool(os.environ.get("CHAOS_KEEP")),
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return 0 if runner.run(Chaos(settings).run()) else 1


if __name__ == "__main__":
    sys.exit(main())
