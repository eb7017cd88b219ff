"""Whether a process is still the one it was."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from conveyor_runtime.kit import identity


def test_this_process_knows_itself() -> None:
    own = identity.ProcessIdentity.own()
    assert own.pid == os.getpid() and own.start_time == identity.start_time(os.getpid()) != 0
    assert own.boot_id == identity.boot_id() and own.pid_namespace.startswith("pid:[")
    assert identity.machine_id()


def test_a_process_that_ended_has_no_start_time_also_as_a_zombie() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = identity.start_time(child.pid)
    assert began is not None and began >= (identity.start_time(os.getpid()) or 0)
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identity.start_time(child.pid) is None, "a zombie does no work"
    child.wait()
    assert identity.start_time(child.pid) is None


def test_a_command_with_parentheses_and_spaces_is_read_right(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = b"S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda self: b"7 (a) R (b c) " + fields)
    assert identity.start_time(7) == 4242
