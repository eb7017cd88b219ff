"""The chaos run in `make test`: 45 s of it, with a seed of its own each time. A failure prints the seed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.chaos.fleet import ROOT


@pytest.mark.timeout(900)
def test_every_promise_is_kept_under_chaos() -> None:
    environment = {**os.environ, "CHAOS_SECONDS": "45"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos"],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout
