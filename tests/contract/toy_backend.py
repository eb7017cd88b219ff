"""A third party's backend, as small as the contract allows: subprocesses of this process, files in a directory.

It knows nothing of ours but what `conveyor_runtime.orchestra` and `conveyor_runtime.errors` export. What it has dies
with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from conveyor_runtime.errors import BackendError, Gone
from conveyor_runtime.orchestra import (
    Backend,
    BackendSettings,
    ContainerStatus,
    NamespaceInfo,
    OnOutput,
    Owner,
    Prepared,
    Progress,
    Stream,
    Task,
    check_task,
    check_task_id,
    mount_path,
    refuse,
)


class Toy:
    """The containers of one directory, shared by the backend objects for it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.containers: dict[tuple[str, str], ToyContainer] = {}
        self.volumes: dict[tuple[str, str], tuple[Owner, datetime]] = {}


class ToyContainer:
    """See the contract."""

    def __init__(self, toy: Toy, ns: str, task: Task, owner: Owner) -> None:
        self._toy, self._ns, self.task, self.owner = toy, ns, task, owner
        self.home = Path(tempfile.mkdtemp(dir=toy.root))
        self.started_at = datetime.now(UTC)
        self._verdict = ""
        self._ended = asyncio.Event()
        self._status = ContainerStatus("running", None, None, self.started_at, None)
        self._work = asyncio.create_task(self._run())

    @property
    def id(self) -> str:
        return f"{self._ns}.{self.task.id}"

    async def status(self) -> ContainerStatus:
        return self._status

    async def wait(self) -> ContainerStatus:
        await self._ended.wait()
        return self._status

    async def logs(self, on_output: OnOutput, *, follow: bool = True) -> None:
        if (self._ns, self.task.id) not in self._toy.containers:
            raise Gone(f"{self.id} was removed")
        names: tuple[Stream, Stream] = ("stdout", "stderr")
        with contextlib.ExitStack() as stack:
            files: list[tuple[Stream, IO[bytes]]] = [
                (name, stack.enter_context(open(self.home / name, "rb"))) for name in names
            ]
            while True:
                last = self._ended.is_set() or not follow
                for name, file in files:
                    while data := file.read(65536):
                        await on_output(name, data)
                if last:
                    return
                await asyncio.sleep(0.01)

    async def stop(self, grace: float = 10.0) -> None:
        await self._end(grace, "cancelled")

    async def cleanup(self) -> None:
        self._toy.containers.pop((self._ns, self.task.id), None)
        await self._end(0, "gone")
        shutil.rmtree(self.home, ignore_errors=True)

    async def _end(self, grace: float, verdict: str) -> None:
        if self._ended.is_set():
            return
        self._verdict = self._verdict or verdict
        self._signal(signal.SIGTERM if grace else signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace or 0.05):
                await self._ended.wait()
        while not self._ended.is_set():
            self._signal(signal.SIGKILL)
            await asyncio.sleep(0.01)

    async def _run(self) -> None:
        folder = self.home / "work"
        folder.mkdir()
        for mount in self.task.mounts:
            link = folder / os.path.relpath(mount_path(self.task, mount.path), self.task.workdir)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(self._toy.root / f"{self._ns}.{mount.volume}")
        stdin = (
            self.task.stdin if isinstance(self.task.stdin, bytes) else b"".join([it async for it in self.task.stdin])
        )
        (self.home / "stdin").write_bytes(stdin)
        env = {"PATH": os.environ["PATH"], **self.task.env, "TOY": str(self.home)}
        with (
            open(self.home / "stdin", "rb") as fed,
            open(self.home / "stdout", "ab") as out,
            open(self.home / "stderr", "ab") as err,
        ):
            streams: dict[str, Any] = {"stdin": fed, "stdout": out, "stderr": err}
            try:
                child = await asyncio.create_subprocess_exec(
                    *self.task.command, cwd=folder, env=env, start_new_session=True, **streams
                )
            except OSError as error:
                err.write(f"{self.task.command[0]}: {error}\n".encode())
                self._finish(127 if isinstance(error, FileNotFoundError) else 126)
                return
        overtime = asyncio.create_task(self._overtime())
        code = await child.wait()
        overtime.cancel()
        while self._signal(signal.SIGKILL):
            await asyncio.sleep(0.005)
        self._finish(128 - code if code < 0 else code)

    async def _overtime(self) -> None:
        if self.task.timeout is not None:
            await asyncio.sleep(self.task.timeout)
            await self._end(self.task.grace, "timeout")

    def _signal(self, number: int) -> bool:
        """Everything that has its mark; whether there was anything."""
        mark, found = f"TOY={self.home}".encode(), False
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError):
                if mark in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                    os.kill(int(name), number)
                    found = True
        return found

    def _finish(self, code: int) -> None:
        killed = 128 < code <= 192
        times = (self.started_at, datetime.now(UTC))
        if self._verdict == "gone":
            self._status = ContainerStatus("error", None, "gone", *times)
        elif self._verdict:
            self._status = ContainerStatus("timeout" if self._verdict == "timeout" else "cancelled", code, None, *times)
        elif killed:
            self._status = ContainerStatus("killed", code, "signal", *times)
        else:
            self._status = ContainerStatus("error" if code else "success", code, None, *times)
        self._ended.set()


class ToyVolume:
    """See the contract."""

    def __init__(self, toy: Toy, ns: str, name: str) -> None:
        self._toy, self._ns, self._name = toy, ns, name

    @property
    def name(self) -> str:
        return self._name

    async def cleanup(self) -> None:
        for (ns, _), container in self._toy.containers.items():
            uses = any(mount.volume == self._name for mount in container.task.mounts)
            if ns == self._ns and uses and not (await container.status()).done:
                raise BackendError(f"volume {self._name} is in use")
        self._toy.volumes.pop((self._ns, self._name), None)
        shutil.rmtree(self._toy.root / f"{self._ns}.{self._name}", ignore_errors=True)


class ToyBackend:
    """See the contract."""

    name = "toy"
    node = "toy-here"

    def __init__(self, toy: Toy) -> None:
        self._toy = toy

    async def prepare(self, task: Task, on_progress: Progress) -> Prepared:
        self._check(task)
        return Prepared()

    async def run(self, ns: str, task: Task, owner: Owner) -> ToyContainer:
        self._check(task)
        for mount in task.mounts:
            await self.create_volume(ns, mount.volume, owner)
        if (ns, task.id) not in self._toy.containers:
            container = self._toy.containers[ns, task.id] = ToyContainer(self._toy, ns, task, owner)
            for name in ("stdout", "stderr"):
                (container.home / name).touch()
        return self._toy.containers[ns, task.id]

    async def get(self, ns: str, task_id: str) -> ToyContainer:
        if (ns, task_id) not in self._toy.containers:
            raise Gone(f"there is no {task_id} in {ns}")
        return self._toy.containers[ns, task_id]

    async def create_volume(self, ns: str, name: str, owner: Owner, *, size_bytes: int = 0) -> ToyVolume:
        (self._toy.root / f"{ns}.{check_task_id(name)}").mkdir(exist_ok=True)
        self._toy.volumes.setdefault((ns, name), (owner, datetime.now(UTC)))
        return ToyVolume(self._toy, ns, name)

    async def close_namespace(self, ns: str, *, grace: float = 10.0) -> None:
        for container in [it for (of, _), it in self._toy.containers.items() if of == ns]:
            await container.stop(grace)
            await container.cleanup()
        for of, name in list(self._toy.volumes):
            if of == ns:
                await ToyVolume(self._toy, ns, name).cleanup()

    async def namespaces(self, installation: str) -> list[NamespaceInfo]:
        things: dict[str, list[tuple[Owner, datetime]]] = {}
        for (ns, _), container in self._toy.containers.items():
            things.setdefault(ns, []).append((container.owner, container.started_at))
        for (ns, _), volume in self._toy.volumes.items():
            things.setdefault(ns, []).append(volume)
        return [
            NamespaceInfo(
                ns, found[0][0].run_id, max(at for _, at in found), tuple(dict.fromkeys(owner for owner, _ in found))
            )
            for ns, found in sorted(things.items())
            if found[0][0].installation == installation
        ]

    async def close(self) -> None:
        """Nothing is held."""

    def _check(self, task: Task) -> None:
        check_task(task)
        refuse(task, "toy", ("mounts", "stdin", "timeout"))


async def open_backend(settings: BackendSettings) -> Backend:
    """What the entry point names."""
    return ToyBackend(Toy(Path(settings.options["root"])))
