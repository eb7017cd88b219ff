"""What a warm machine costs, against a cold one and against a cold docker container in the same run.

    python -m tests.benchmarks.bench_qemu [rounds]

A machine, cold or warm, has started when its guest's agent answers. Against the container stands all that a run waits
for: `start_sandbox`, from a warm machine. For both, one clock runs until `start` has returned, and one until the first
output of a command is there: the container's own, and the sandbox's first exec. All take turns, and medians are
compared, so that a busy machine is busy for all of them. Where there is no docker, those ratios are left out.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import uvloop

from conveyor_runtime.orchestra import ExecTag, Owner, Stream, Task
from conveyor_runtime.orchestra.qemu import QemuBackend
from conveyor_runtime.orchestra.qemu.image import build
from conveyor_runtime.orchestra.qemu.images import default_directory
from conveyor_runtime.orchestra.qemu.vm import Vm
from tests.benchmarks import report
from tests.support.docker import docker_module, ensure_busybox
from tests.support.environment import docker_answers

NS = f"cv-bench-{os.getpid()}"
OWNER = Owner("bench", str(os.getpid()), "bench", 1, 0)
TAG = ExecTag("bench", "bench", 1, 0)
TASK = Task("sandbox")


async def say(line: str) -> None:
    """Progress, aside."""
    print(line, file=sys.stderr)


class Machines:
    """Starts machines in a directory of their own; each ends before the next one starts."""

    def __init__(self, backend: QemuBackend, folder: Path) -> None:
        self._fleet = backend._fleet
        self._folder = folder
        self._count = 0

    def _directory(self) -> Path:
        self._count += 1
        directory = self._folder / str(self._count)
        directory.mkdir()
        return directory

    async def cold(self) -> float:
        """Seconds from nothing to a guest that answers."""
        machine, directory = await self._fleet._machines.describe(TASK), self._directory()
        begun = time.perf_counter()
        return await self._ended(await Vm.boot(machine, directory), begun)

    async def warm(self) -> float:
        """The same from the frozen one."""
        machine, directory = await self._fleet._machines.describe(TASK), self._directory()
        frozen = await self._fleet._templates.get(machine, say)
        begun = time.perf_counter()
        return await self._ended(await Vm.take_up(machine, directory, frozen), begun)

    async def _ended(self, vm: Vm, begun: float) -> float:
        seconds = time.perf_counter() - begun
        await vm.kill()
        vm.close()
        return seconds


class Containers:
    """Creates and starts containers."""

    def __init__(self, api: Any, image: str) -> None:
        self._api = api
        self._image = image
        self.outputs: list[float] = []

    async def start(self) -> float:
        """Seconds to create and start one; what it takes until its output is there is noted."""
        begun = time.perf_counter()
        made = await asyncio.to_thread(self._api.create_container, self._image, ["sh", "-c", "echo up; sleep 1000"])
        await asyncio.to_thread(self._api.start, made["Id"])
        seconds = time.perf_counter() - begun
        said = self._api.logs(made["Id"], stream=True, follow=True)
        assert (await asyncio.to_thread(next, said)) == b"up\n"
        self.outputs.append(time.perf_counter() - begun)
        await asyncio.to_thread(self._api.remove_container, made["Id"], force=True)
        return seconds


class Sandboxes:
    """Starts sandboxes as a run does: in a namespace that has no machine yet."""

    def __init__(self, backend: QemuBackend) -> None:
        self._backend = backend
        self.execs: list[float] = []
        self.outputs: list[float] = []

    async def start(self) -> float:
        """Seconds until `start_sandbox` has returned; what it takes until a command's output is there is noted, and
        what an exec does."""

        async def take(stream: Stream, data: bytes) -> None:
            self.outputs.append(time.perf_counter() - begun)

        begun = time.perf_counter()
        sandbox = await self._backend.start_sandbox(NS, TASK, OWNER)
        seconds = time.perf_counter() - begun
        await sandbox.exec(["echo", "up"], on_output=take, tag=TAG)
        for _ in range(5):
            begun = time.perf_counter()
            assert (await sandbox.exec(["true"], on_output=take, tag=TAG)).exit_code == 0
            self.execs.append(time.perf_counter() - begun)
        await self._backend.close_namespace(NS, grace=0)
        return seconds


async def in_turns(calls: Mapping[str, Callable[[], Awaitable[float]]], rounds: int) -> dict[str, float]:
    """Median seconds of each; the other way round every second time, so that what runs before whom evens out."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in list(calls.items())[:: -1 if number % 2 else 1]:
            seconds = await call()
            if number:  # the first round warms up
                times[name].append(seconds)
    return {name: statistics.median(found) for name, found in times.items()}


async def main() -> None:
    """All of it."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    build(default_directory(), print)
    with tempfile.TemporaryDirectory() as folder:
        backend = QemuBackend(Path(folder, "root"), default_directory())
        await backend.prepare(TASK, say)
        machines, sandboxes = Machines(backend, Path(folder)), Sandboxes(backend)
        calls = {"cold": machines.cold, "warm": machines.warm, "sandbox": sandboxes.start}
        if docker_answers():
            api = docker_module.APIClient(version="auto", **docker_module.utils.kwargs_from_env())
            image = ensure_busybox(api)
            containers = Containers(api, image)
            calls["docker"] = containers.start
        medians, of = await in_turns(calls, rounds), f"{rounds} rounds"
        figures = {f"{name} ms": seconds * 1000 for name, seconds in medians.items()}
        report.row("qemu", "start", of, {**figures, "exec ms": statistics.median(sandboxes.execs) * 1000})
        report.goal("qemu", "start", of, "warm machine / cold machine", medians["warm"] / medians["cold"], most=0.1)
        if "docker" in medians:
            ratio = medians["sandbox"] / medians["docker"]
            report.goal("qemu", "start", of, "start of a sandbox / of a cold container", ratio, most=0.6)
            first, theirs = (statistics.median(it.outputs[1:]) for it in (sandboxes, containers))
            report.row("qemu", "first output", of, {"sandbox ms": first * 1000, "docker ms": theirs * 1000})
            report.goal("qemu", "first output", of, "of a sandbox / of a cold container", first / theirs, most=0.6)
        await backend.close()


if __name__ == "__main__":
    uvloop.run(main())
