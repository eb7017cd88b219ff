"""The mock backend's side of the contract."""

from __future__ import annotations

from typing import Any

from conveyor_runtime.errors import BackendError, Gone, TerminalError
from conveyor_runtime.orchestra import checks
from conveyor_runtime.orchestra.base import Prepared, Progress
from conveyor_runtime.orchestra.mock.running import Running
from conveyor_runtime.orchestra.mock.sandbox import MockSandbox, Sandboxed
from conveyor_runtime.orchestra.mock.world import Namespace, StoredVolume, World
from conveyor_runtime.orchestra.names import check_task_id
from conveyor_runtime.orchestra.status import ContainerStatus, NamespaceInfo, OnOutput
from conveyor_runtime.orchestra.task import Owner, Task

__all__ = ["MockBackend", "MockContainer", "MockVolume"]

_SANDBOX_KEEPS: tuple[checks.Wish, ...] = ("mounts", "the image's own command")
_KEEPS: tuple[checks.Wish, ...] = (*_SANDBOX_KEEPS, "restart policy", "stdin", "timeout")


class MockBackend:
    """See `conveyor_runtime.orchestra.base.Backend` and `capabilities.Sandboxes`. Keeps no limits, ports or networks,
    and says so."""

    name = "mock"

    def __init__(self, world: World | None = None) -> None:
        """A world of its own, if none is given."""
        self._world = world or World()
        self.node = f"mock-{id(self._world):x}"

    async def prepare(self, task: Task, on_progress: Progress) -> Prepared:
        """See the contract."""
        self._world.strike("prepare")
        _check(task)
        return Prepared()

    async def run(self, ns: str, task: Task, owner: Owner) -> MockContainer:
        """See the contract."""
        self._world.strike("run")
        _check(task)
        space = self._world.namespaces.setdefault(ns, Namespace())
        if task.id in space.sandboxes:
            raise TerminalError(f"{task.id} of {ns} is there already, as a sandbox")
        if task.id not in space.containers:
            volumes = self._volumes(ns, task, owner)
            program = self._world.program(task)
            space.containers[task.id] = Running(ns, task, owner, program, volumes, self._world.now)
        return MockContainer(self._world, ns, task.id, space.containers[task.id])

    async def get(self, ns: str, task_id: str) -> MockContainer:
        """See the contract."""
        self._world.strike("get")
        space = self._world.namespaces.get(ns)
        if space is None or task_id not in space.containers:
            raise Gone(f"there is no mock container {task_id} in {ns}")
        return MockContainer(self._world, ns, task_id, space.containers[task_id])

    async def start_sandbox(self, ns: str, task: Task, owner: Owner) -> MockSandbox:
        """See the contract."""
        self._world.strike("start_sandbox")
        checks.check_sandbox(task)
        checks.refuse(task, "mock", _SANDBOX_KEEPS)
        space = self._world.namespaces.setdefault(ns, Namespace())
        if task.id in space.containers:
            raise TerminalError(f"{task.id} of {ns} is there already, as a container")
        if task.id not in space.sandboxes:
            volumes = self._volumes(ns, task, owner)
            space.sandboxes[task.id] = Sandboxed(task, owner, volumes, self._world.now())
        return MockSandbox(self._world, ns, space.sandboxes[task.id])

    async def get_sandbox(self, ns: str, task_id: str) -> MockSandbox:
        """See the contract."""
        self._world.strike("get_sandbox")
        space = self._world.namespaces.get(ns)
        if space is None or task_id not in space.sandboxes:
            raise Gone(f"there is no mock sandbox {task_id} in {ns}")
        return MockSandbox(self._world, ns, space.sandboxes[task_id])

    async def create_volume(self, ns: str, name: str, owner: Owner, *, size_bytes: int = 0) -> MockVolume:
        """See the contract."""
        self._world.strike("create_volume")
        if size_bytes:
            raise TerminalError("the mock backend cannot keep volume sizes")
        self._volume(ns, check_task_id(name), owner)
        return MockVolume(self._world, ns, name)

    async def close_namespace(self, ns: str, *, grace: float = 10.0) -> None:
        """See the contract."""
        self._world.strike("close_namespace")
        space = self._world.namespaces.get(ns)
        for running in list(space.containers.values()) if space else ():
            await running.stop(grace)
        for found in list(space.sandboxes.values()) if space else ():
            await found.remove(grace)
        self._world.namespaces.pop(ns, None)

    async def namespaces(self, installation: str) -> list[NamespaceInfo]:
        """See the contract."""
        self._world.strike("namespaces")
        found = []
        for ns, space in sorted(self._world.namespaces.items()):
            things = [(one.owner, one.status.started_at) for one in space.containers.values()]
            things += [(found.owner, found.started_at) for found in space.sandboxes.values()]
            things += [(one.owner, one.created_at) for one in space.volumes.values()]
            if things and things[0][0].installation == installation:
                owners = tuple(dict.fromkeys(owner for owner, _ in things))
                found.append(NamespaceInfo(ns, owners[0].run_id, max(at for _, at in things), owners))
        return found

    async def close(self) -> None:
        """Nothing is held."""

    def _volumes(self, ns: str, task: Task, owner: Owner) -> dict[str, dict[str, Any]]:
        for mount in task.mounts:
            self._volume(ns, mount.volume, owner)
        space = self._world.namespaces[ns]
        return {mount.volume: space.volumes[mount.volume].content for mount in task.mounts}

    def _volume(self, ns: str, name: str, owner: Owner) -> None:
        space = self._world.namespaces.setdefault(ns, Namespace())
        space.volumes.setdefault(name, StoredVolume(owner, self._world.now()))


class MockContainer:
    """See `conveyor_runtime.orchestra.base.Container`."""

    def __init__(self, world: World, ns: str, task_id: str, running: Running) -> None:
        self._world = world
        self._ns = ns
        self._task_id = task_id
        self._running = running

    @property
    def id(self) -> str:
        return f"{self._ns}.{self._task_id}"

    async def status(self) -> ContainerStatus:
        """See the contract."""
        self._world.strike("status")
        return self._running.status

    async def wait(self) -> ContainerStatus:
        """See the contract."""
        self._world.strike("wait")
        await self._running.ended.wait()
        return self._running.status

    async def logs(self, on_output: OnOutput, *, follow: bool = True) -> None:
        """See the contract."""
        self._world.strike("logs")
        if not self._is_there():
            raise Gone(f"the container {self.id} was removed")
        await self._running.output.follow(on_output, follow=follow)

    async def stop(self, grace: float = 10.0) -> None:
        """See the contract."""
        self._world.strike("stop")
        await self._running.stop(grace)

    async def cleanup(self) -> None:
        """See the contract."""
        self._world.strike("cleanup")
        if self._is_there():
            del self._world.namespaces[self._ns].containers[self._task_id]
            await self._running.stop(0, "gone")

    def _is_there(self) -> bool:
        space = self._world.namespaces.get(self._ns)
        return space is not None and space.containers.get(self._task_id) is self._running


class MockVolume:
    """See `conveyor_runtime.orchestra.base.Volume`."""

    def __init__(self, world: World, ns: str, name: str) -> None:
        self._world = world
        self._ns = ns
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    async def cleanup(self) -> None:
        """See the contract."""
        space = self._world.namespaces.get(self._ns)
        if space is None:
            return
        users = [
            task_id
            for task_id, running in space.containers.items()
            if not running.ended.is_set() and any(mount.volume == self._name for mount in running.task.mounts)
        ]
        if users:
            raise BackendError(f"volume {self._name} is in use by {', '.join(users)}")
        space.volumes.pop(self._name, None)


def _check(task: Task) -> None:
    checks.check_task(task)
    checks.refuse(task, "mock", _KEEPS)
