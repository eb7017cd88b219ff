"""The contract every backend keeps: what may be asked of a place where containers run.

A *namespace* is everything that belongs to one run, or one service, on one node. A *container* runs one command to its
end. A *sandbox* is a container that serves many execs and owns one workspace volume. A task's failure is a value
(`ContainerStatus`, `ExitStatus`); a backend's failure is an exception (`conveyor_runtime.errors.BackendError` and its
children): an answer that cannot be had is never success. A request that a backend cannot keep is refused with
`TerminalError` before anything starts (`checks`).

`Backend`, `Container` and `Volume` are what every backend has; `capabilities` holds what only some have. What goes in
is in `task`, what comes out in `status`. The suite in `conveyor_runtime.testing` holds backends to all of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Protocol, Self

from conveyor_runtime.orchestra.status import ContainerStatus, NamespaceInfo, OnOutput
from conveyor_runtime.orchestra.task import Owner, Task

__all__ = ["Backend", "Container", "Prepared", "Progress", "Volume"]

Progress = Callable[[str], Awaitable[None]]
"""Takes one line for a person to read."""


class Prepared:
    """What a task needs is here, and stays until this is closed (the image is not cleaned away). A context manager;
    closing twice is fine. After fn's split of preparing from running: each has a time limit of its own."""

    def __init__(self, digest: str = "", release: Callable[[], None] | None = None) -> None:
        """`digest` names the image's content, `""` where there are no images; `release` is called once."""
        self.digest = digest
        self._release = release

    def close(self) -> None:
        """Let go of it."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Container(Protocol):
    """A container that was started. Any number of these objects, in any process, may stand for the same one."""

    @property
    def id(self) -> str:
        """The backend's own identifier."""

    async def status(self) -> ContainerStatus:
        """How it is now. Once it has ended, always the same and without asking the backend again.

        Removed from outside is `error` with reason `gone`. Raises `BackendError` if it cannot be learnt.
        """

    async def wait(self) -> ContainerStatus:
        """The status it ends with; waits as long as it takes. Cancelling the call leaves the container alone.

        With a restart policy, the end is when no more restart will come.
        """

    async def logs(self, on_output: OnOutput, *, follow: bool = True) -> None:
        """Pass on all output from the very beginning, stdout and stderr apart, each byte once and in order.

        With `follow`, goes on with what comes, as it comes, and returns when the container has ended and all is
        passed on; without, returns with what there is now. As often as one likes, by any number of followers at
        once, also after the end. Raises `Gone` when container and logs have been removed.
        """

    async def stop(self, grace: float = 10.0) -> None:
        """SIGTERM, `grace` seconds, SIGKILL, to everything the container started; returns when nothing of it runs.

        It has then the status `cancelled`. One that has ended already, or is gone, keeps the status it has.
        """

    async def cleanup(self) -> None:
        """Kill what runs and remove the container with its logs; named volumes stay. Twice is fine, gone is fine."""


class Volume(Protocol):
    """Storage of a namespace that outlives its containers."""

    @property
    def name(self) -> str:
        """As it was asked for."""

    async def cleanup(self) -> None:
        """Remove it with what is in it. Twice is fine, gone is fine; in use is `BackendError`."""


class Backend(Protocol):
    """A place where containers run. Objects of one process may share it; state lives in the place itself."""

    @property
    def name(self) -> str:
        """Its word in settings and specs: `docker`, `native`, `qemu`, `mock`."""

    @property
    def node(self) -> str:
        """Names the place where the containers live; safe as a token of a bus subject."""

    async def prepare(self, task: Task, on_progress: Progress) -> Prepared:
        """Have what the task needs, by its pull policy. Raises `ImageNotFound` (no use trying again),
        `BackendUnavailable` (it may work later), `TerminalError` (this backend cannot keep the request)."""

    async def run(self, ns: str, task: Task, owner: Owner) -> Container:
        """Start it and return at once, or return the one that is there already under this namespace and task id,
        running or ended: however many ask at once, it is started once. Makes the volumes of its mounts. Raises
        `TerminalError` for an id that a sandbox has.

        A command that cannot be executed is a task's failure: `error` with exit code 126 or 127, and stderr says why.
        """

    async def get(self, ns: str, task_id: str) -> Container:
        """The container that `run` started, also from another process. Raises `Gone` if there is none."""

    async def create_volume(self, ns: str, name: str, owner: Owner, *, size_bytes: int = 0) -> Volume:
        """Make it, or return the one that is there, whatever its size. `size_bytes` 0 = the backend's default."""

    async def close_namespace(self, ns: str, *, grace: float = 10.0) -> None:
        """Remove all that carries the namespace, running or not. What runs gets SIGTERM and `grace` seconds.

        Nothing there is success. Goes on past single failures, then raises `BackendError` naming what remains.
        """

    async def namespaces(self, installation: str) -> list[NamespaceInfo]:
        """What exists here of one installation."""

    async def close(self) -> None:
        """Release this process's connection and threads. Containers go on. Twice is fine."""
