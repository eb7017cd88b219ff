"""What the backends share about execs: how a child records itself, how records are read, how one is ended.

Every exec begins as a small `sh` script that writes its record and then becomes the command. The record's file name
says it all, because creating a file is atomic where writing one is not:

    <step>.<attempt>.<takeover>.<pid>.<start time>.<nonce>

It is written by the child itself, so that there is no moment in which a process runs and nobody can know of it, not
even when the worker that asked for it was killed in between. A *fence*, `fence.<step>.<attempt>.<takeover>`, is left
by whoever ends the earlier execs of a step. The child looks for one after it has recorded itself, the other side
reads the records after it has put up the fence: one of the two always sees the other.
"""

from __future__ import annotations

import asyncio
import posixpath
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from conveyor_runtime.errors import BackendError, TerminalError
from conveyor_runtime.orchestra.status import ExitStatus
from conveyor_runtime.orchestra.task import ExecTag

__all__ = [
    "EXEC_MARK",
    "SANDBOX_MARK",
    "WRAPPER",
    "Record",
    "check_tag",
    "end",
    "fence_name",
    "new_nonce",
    "resolve_target",
    "resolve_workdir",
    "status_of",
    "wrap",
]

EXEC_MARK = "CONVEYOR_EXEC"
"""Environment variable that every process of one exec inherits: its nonce. Finds those who left the session."""
SANDBOX_MARK = "CONVEYOR_SANDBOX"
"""The same for all execs of a namespace."""


# $1 directory of records, $2 step, $3 attempt, $4 takeover, $5 nonce, $6 what to note, $7 working directory, then argv.
# Only builtins: an image may have nothing but sh. Start time is field 22 of stat; the second may hold spaces.
WRAPPER = r"""
cv_start() { shift 19; cv_time=$1; }
cv_die() { echo "conveyor: $1" >&2; exit 125; }
read -r cv_stat < "/proc/$$/stat" || cv_die "cannot read /proc/$$/stat"
cv_start ${cv_stat##*) }
cv_oom=0
for cv_file in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control; do
  [ -r "$cv_file" ] || continue
  while read -r cv_key cv_value; do
    [ "$cv_key" = oom_kill ] && cv_oom=$cv_value
  done < "$cv_file"
done
echo "$6 $cv_oom" > "$1/$2.$3.$4.$$.$cv_time.$5" || cv_die "cannot record the exec"
for cv_file in "$1/fence.$2."*; do
  cv_fence=${cv_file#"$1/fence.$2."}
  case $cv_fence in *[!0-9.]*) continue;; esac
  if [ "${cv_fence%.*}" -gt "$3" ] || { [ "${cv_fence%.*}" -eq "$3" ] && [ "${cv_fence#*.}" -gt "$4" ]; }; then
    cv_die "a later attempt has begun"
  fi
done
cd "$7" || cv_die "cannot enter $7"
shift 7
unset OLDPWD cv_stat cv_time cv_oom cv_file cv_key cv_value cv_fence
exec "$@"
"""

_STEP = re.compile(r"[A-Za-z0-9_-]{1,128}")
_RECORD = re.compile(r"([A-Za-z0-9_-]{1,128})\.(\d+)\.(\d+)\.(\d+)\.(\d+)\.([0-9a-f]{16})")
_POLL = (0.02, 0.05, 0.1, 0.2)  # seconds between looks, the last one repeated
_SIGTERM, _SIGKILL = 15, 9
_UNKILLABLE = 15.0


@dataclass(frozen=True)
class Record:
    """One exec as its own child noted it. `pid` and `start` are as seen inside the sandbox."""

    step: str
    attempt: int
    takeover: int
    pid: int
    start: int
    nonce: str

    @classmethod
    def parse(cls, name: str) -> Record | None:
        """None for a name that is no record."""
        match = _RECORD.fullmatch(name)
        if match is None:
            return None
        step, attempt, takeover, pid, start, nonce = match.groups()
        return cls(step, int(attempt), int(takeover), int(pid), int(start), nonce)

    @property
    def name(self) -> str:
        """Its file name."""
        return f"{self.step}.{self.attempt}.{self.takeover}.{self.pid}.{self.start}.{self.nonce}"

    def is_before(self, step: str, before: tuple[int, int]) -> bool:
        """Whether it belongs to an earlier attempt or takeover of `step`."""
        return self.step == step and (self.attempt, self.takeover) < before


def new_nonce() -> str:
    """16 hexadecimal digits; of one length, so that none is a prefix of another."""
    return secrets.token_hex(8)


def check_tag(tag: ExecTag) -> ExecTag:
    """The tag itself, or `TerminalError` if it could not be the name of a record."""
    if not _STEP.fullmatch(tag.step) or tag.attempt < 0 or tag.takeover < 0:
        raise TerminalError(f"step {tag.step!r}, attempt {tag.attempt}, takeover {tag.takeover} cannot tag an exec")
    return tag


def fence_name(step: str, before: tuple[int, int]) -> str:
    """The file that keeps execs of `step` tagged below `before` from beginning."""
    return f"fence.{step}.{before[0]}.{before[1]}"


def wrap(argv: list[str], *, directory: str, tag: ExecTag, nonce: str, note: str, workdir: str) -> list[str]:
    """The argument list that records itself in `directory` and becomes `argv`, which stays as it is."""
    if not argv or any("\0" in part for part in argv):
        raise TerminalError("a command needs at least one word, and none of them a NUL")
    numbers = [str(tag.attempt), str(tag.takeover)]
    return ["sh", "-c", WRAPPER, "sh", directory, tag.step, *numbers, nonce, note, workdir, *argv]


def resolve_workdir(workspace: str, workdir: str | None) -> str:
    """Absolute path of a working directory that may be given relative to the workspace."""
    return posixpath.normpath(posixpath.join(workspace, workdir or "."))


def resolve_target(target: str) -> str:
    """A path below the workspace in its shortest form, `.` = the workspace. `TerminalError` for one that is not."""
    relative = posixpath.normpath(target)
    if "\0" in target or relative.startswith("/") or relative.split("/")[0] == "..":
        raise TerminalError(f"{target!r} is not inside the workspace")
    return relative


def status_of(code: int, started_at: datetime, *, oom: bool = False) -> ExitStatus:
    """How an exec ended by its exit code; a negative one is the signal that ended it, as Python has it.

    A shell reports a command that signal n ended as 128 + n, so a code from 129 to 192 means a signal here too.
    """
    exit_code = 128 - code if code < 0 else code
    now = datetime.now(UTC)
    if exit_code == 0:
        return ExitStatus("success", 0, None, started_at, now)
    if 128 < exit_code <= 192:
        return ExitStatus("killed", exit_code, "oom" if oom else "signal", started_at, now)
    return ExitStatus("error", exit_code, None, started_at, now)


async def end(sweep: Callable[[int], Awaitable[Iterable[int]]], grace: float) -> None:
    """SIGTERM, up to `grace` seconds, then SIGKILL until nothing is left.

    `sweep(signal)` sends the signal (0 = none) to all that belongs to what is being ended and returns who that was.
    Raises `BackendError` when processes survive SIGKILL for 15 seconds: they hang in the kernel.
    """
    loop = asyncio.get_running_loop()
    kill_at = loop.time() + grace
    signal, looks = _SIGTERM, 0
    while True:
        left = list(await sweep(signal))
        if not left:
            return
        now = loop.time()
        if now >= kill_at + _UNKILLABLE:
            raise BackendError(f"processes {left} survive SIGKILL")
        # The last seconds before SIGKILL are not slept through, and after it every look sends it again: what is
        # being killed may still be forking.
        pause = _POLL[min(looks, len(_POLL) - 1)]
        if now < kill_at:
            pause = min(pause, kill_at - now)
        await asyncio.sleep(pause)
        looks += 1
        signal = _SIGKILL if loop.time() >= kill_at else 0
