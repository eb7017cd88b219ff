"""What only some backends can do, as protocols of their own: ask with `isinstance`, never by name."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from conveyor_runtime.errors import TerminalError
from conveyor_runtime.orchestra.base import Backend
from conveyor_runtime.orchestra.status import ExitStatus, OnOutput, OnStat
from conveyor_runtime.orchestra.task import ExecTag, Owner, Stdin, Task

__all__ = ["Freezable", "KeepsWarm", "Measured", "Sandbox", "Sandboxes", "VolumeCopy", "sandboxes_of"]


class Sandbox(Protocol):
    """A running container that takes execs."""

    @property
    def id(self) -> str:
        """The backend's own identifier (container id)."""

    @property
    def workspace(self) -> str:
        """Absolute path of the workspace, as execs see it."""

    async def exec(
        self,
        argv: list[str],
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        stdin: Stdin = b"",
        timeout: float | None = None,
        grace: float = 10.0,
        on_output: OnOutput,
        tag: ExecTag,
    ) -> ExitStatus:
        """Run `argv` and pass its output on as it comes; returns when it has ended.

        `workdir` is absolute or relative to the workspace. After `timeout` seconds, and when the caller is cancelled,
        everything the exec started gets SIGTERM, `grace` seconds later SIGKILL; the call ends only then. What it
        left in the background when it ended by itself goes on. Raises `Gone` if the sandbox was removed meanwhile,
        `BackendError` if the end cannot be learnt: that is never success.
        """

    async def end_execs(self, step: str, before: tuple[int, int], *, grace: float = 10.0) -> int:
        """End everything that execs of `step` tagged below `before` = (attempt, takeover) left running.

        Waits until they are really gone and returns how many execs that were. An exec with such a tag that has been
        asked for but has not begun yet will refuse to begin: `error`, and stderr says why.
        """

    async def copy_in(self, source: Path, target: str) -> None:
        """Make `target` (relative to the workspace, `.` = itself) the content of the directory `source`.

        What was there goes. Symbolic links are copied as links; the copy belongs to the user that execs run as.
        Raises `TerminalError` for devices, pipes and sockets, and for a target outside; one that a link leads out is
        refused, too. Nothing is written after a cancelled call has ended.
        """

    async def cleanup(self) -> None:
        """Kill what runs in it and remove it with its workspace. Twice is fine, gone is fine."""


@runtime_checkable
class Sandboxes(Protocol):
    """A backend that has sandboxes. After PocketCI's sandbox drivers, with execs that can be told apart and ended."""

    async def start_sandbox(self, ns: str, task: Task, owner: Owner) -> Sandbox:
        """Start it, or return the one that runs already under this namespace and task id.

        Raises `TerminalError` for a task with a command, stdin or timeout, and for an id that a container has."""

    async def get_sandbox(self, ns: str, task_id: str) -> Sandbox:
        """The running sandbox, also from another process than started it. Raises `Gone` if there is none."""


@runtime_checkable
class Freezable(Protocol):
    """A container or sandbox that can be halted and resumed (fn's freezer)."""

    async def freeze(self) -> None:
        """Halt all its processes; they keep their memory. Its status stays `running`. Twice is fine."""

    async def unfreeze(self) -> None:
        """Let them go on. Twice is fine."""


@runtime_checkable
class Measured(Protocol):
    """A container or sandbox that tells what it uses (fn's statistics)."""

    async def stats(self, on_stat: OnStat) -> None:
        """Pass on a sample about every second, the first one after a second; returns when it has ended."""


@runtime_checkable
class VolumeCopy(Protocol):
    """A volume whose content can be read and written (PocketCI's volume data accessor)."""

    async def copy_in(self, archive: AsyncIterable[bytes]) -> None:
        """Unpack a tar archive over what is there.

        Raises `TerminalError` for a member that is absolute, leads out of the volume by `..` or through a link, or
        is a device, pipe or socket; nothing is ever written outside.
        """

    def copy_out(self, *paths: str) -> AsyncIterator[bytes]:
        """A tar archive of these paths, directories with all below them, named relative to the volume; without any,
        of everything. Raises `TerminalError` for a path that leads out, `Gone` for one that is not there.

        Close the iterator (`contextlib.aclosing`) when leaving it early.
        """


@runtime_checkable
class KeepsWarm(Protocol):
    """A backend that can start sandboxes before anybody asks, to be taken over by `start_sandbox` (`Task.warm`)."""

    def keep_warm(self, installation: str) -> None:
        """From now until `close`, keep ready in this process what the settings say. Each one is handed to one task
        only, also when its process is killed at any moment, and then carries that task's owner."""

    async def reap_warm(self, installation: str) -> list[str]:
        """Remove what processes keep no more that have died; returns their names. What a living one keeps stays."""


def sandboxes_of(backend: Backend) -> Sandboxes:
    """The backend as one that has sandboxes. Raises `TerminalError` if it has none."""
    if not isinstance(backend, Sandboxes):
        raise TerminalError(f"backend {backend.name} has no sandboxes")
    return backend
