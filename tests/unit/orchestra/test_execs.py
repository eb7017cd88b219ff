"""Records, fences, exit codes and paths."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from conveyor_runtime.errors import BackendError, TerminalError
from conveyor_runtime.orchestra import ExecTag, Limits
from conveyor_runtime.orchestra.execs import (
    Record,
    check_tag,
    end,
    new_nonce,
    resolve_target,
    resolve_workdir,
    status_of,
)

NOW = datetime.now(UTC)


def test_records_are_what_their_names_say() -> None:
    record = Record("build-1", 2, 10, 77, 123456, new_nonce())
    assert Record.parse(record.name) == record
    for name in ("", "fence.build.1.0", "build.1.0.7.8.short", "a.b.1.0.7.8.0123456789abcdef", "x" * 300):
        assert Record.parse(name) is None


@pytest.mark.parametrize(
    ("attempt", "takeover", "earlier"),
    [(1, 0, True), (1, 9, True), (2, 0, True), (2, 1, False), (2, 2, False), (10, 0, False)],
)
def test_order_of_attempts(attempt: int, takeover: int, earlier: bool) -> None:
    assert Record("build", attempt, takeover, 1, 1, "").is_before("build", (2, 1)) is earlier
    assert not Record("other", attempt, takeover, 1, 1, "").is_before("build", (2, 1))


@pytest.mark.parametrize("step", ["", "a.b", "a/b", "a b", "x" * 129, "*"])
def test_steps_that_cannot_be_part_of_a_file_name(step: str) -> None:
    with pytest.raises(TerminalError):
        check_tag(ExecTag("run", step, 1, 0))


@pytest.mark.parametrize(
    ("code", "oom", "expected"),
    [
        (0, False, ("success", 0, None)),
        (1, False, ("error", 1, None)),
        (128, False, ("error", 128, None)),
        (255, False, ("error", 255, None)),
        (-9, False, ("killed", 137, "signal")),
        (137, False, ("killed", 137, "signal")),
        (137, True, ("killed", 137, "oom")),
        (-15, False, ("killed", 143, "signal")),
    ],
)
def test_exit_codes(code: int, oom: bool, expected: tuple[str, int, str | None]) -> None:
    status = status_of(code, NOW, oom=oom)
    assert (status.status, status.exit_code, status.reason) == expected


def test_working_directories() -> None:
    assert resolve_workdir("/w", None) == resolve_workdir("/w", "") == resolve_workdir("/w", ".") == "/w"
    assert resolve_workdir("/w", "a/b") == "/w/a/b"
    assert resolve_workdir("/w", "/etc") == "/etc"
    assert resolve_target("a/../b/") == "b"
    for target in ("..", "/a", "a/../..", "a\0"):
        with pytest.raises(TerminalError):
            resolve_target(target)


def test_limits_are_not_negative() -> None:
    with pytest.raises(TerminalError):
        Limits(memory_bytes=-1)


class Tree:
    """Processes that end after so many looks, or at SIGKILL, or never."""

    def __init__(self, looks: int, *, deaf: bool = False, stuck: bool = False) -> None:
        self.looks, self.deaf, self.stuck, self.signals = looks, deaf, stuck, list[int]()

    async def sweep(self, signal: int) -> list[int]:
        self.signals.append(signal)
        if self.stuck or (self.deaf and signal != 9):
            return [1]
        self.looks -= 1
        return [1] if self.looks >= 0 and signal != 9 else []


@pytest.mark.looptime
async def test_who_listens_is_not_killed() -> None:
    tree = Tree(3)
    await end(tree.sweep, 10)
    assert tree.signals == [15, 0, 0, 0]


@pytest.mark.looptime
async def test_who_does_not_listen_is_killed_after_the_grace() -> None:
    tree = Tree(0, deaf=True)
    await end(tree.sweep, 10)
    assert tree.signals[0] == 15
    assert tree.signals.count(9) == 1
    assert tree.signals[-1] == 9


@pytest.mark.looptime
async def test_who_cannot_be_killed_is_told() -> None:
    with pytest.raises(BackendError, match="survive"):
        await end(Tree(0, stuck=True).sweep, 1)
