"""A keeper that kills itself at one moment of its first start, as the variable `DIES` has it: `<moment> <mark>`."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import IO

from conveyor_runtime.orchestra.native import keeper
from conveyor_runtime.orchestra.native.job import Kept

MOMENT, _, MARK = os.environ["DIES"].partition(" ")
start, popen = Kept.start, Kept._popen


def perhaps_die(moment: str) -> None:
    if moment == MOMENT and not os.path.exists(MARK):
        os.mkdir(MARK)
        os.kill(os.getpid(), signal.SIGKILL)


def dying_start(kept: Kept) -> None:
    perhaps_die("asked")
    start(kept)


def dying_popen(kept: Kept, stdin: IO[bytes], out: IO[bytes], err: IO[bytes]) -> subprocess.Popen[bytes]:
    perhaps_die("begun")
    child = popen(kept, stdin, out, err)
    perhaps_die("forked")
    return child


if __name__ == "__main__":
    setattr(Kept, "start", dying_start)  # noqa: B010 - as a method, which the type checker forbids
    setattr(Kept, "_popen", dying_popen)  # noqa: B010
    keeper.main()
