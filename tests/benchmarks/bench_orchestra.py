"""What a container's whole life costs, against the docker command and a bare subprocess in the same run.

    python -m tests.benchmarks.bench_orchestra [rounds with docker [rounds without]]

A life is create, start, wait for the end, read the logs, remove; the command is `echo`. Rounds of ours and of the peer
alternate, and medians are compared, so that a busy machine is busy for both. The docker command does the same with five
calls (it is given our `--init`); the bare subprocess is Python's own, which has no logs and leaves nothing to remove.
A sandbox that stood ready is compared with one that is started, and ten who want an image with one who does; the image
comes from a `docker-registry` on loopback, where there is one.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from conveyor_runtime.config import BackendSettings, Credentials, ImageSettings, WarmSettings
from conveyor_runtime.orchestra import Backend, ExecTag, Limits, Owner, Sandbox, Stream, Task, sandboxes_of
from conveyor_runtime.orchestra.docker import DockerBackend
from conveyor_runtime.orchestra.native import NativeBackend
from conveyor_runtime.telemetry.metrics import WARM_SANDBOXES
from tests.benchmarks import report
from tests.support.docker import docker_module, ensure_busybox
from tests.support.registry import PASSWORD, USER, free_port, registry

NS = f"cv-bench-{os.getpid()}"
OWNER = Owner("bench", str(os.getpid()), "bench", 1, 0)
TAG = ExecTag("bench", "bench", 1, 0)


async def life(backend: Backend, image: str, number: int) -> None:
    """One container of ours from its creation to its removal."""
    said = b""

    async def take(stream: Stream, data: bytes) -> None:
        nonlocal said
        said += data

    task = Task(f"life-{number}", image=image, command=("echo", "hello"))
    container = await backend.run(NS, task, OWNER)
    assert (await container.wait()).exit_code == 0
    await container.logs(take)
    assert said == b"hello\n"
    await container.cleanup()


async def command(*arguments: str) -> bytes:
    """One call of a program."""
    process = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0, arguments
    return out


async def docker_life(image: str, number: int) -> None:
    """The same by the docker command."""
    name = f"{NS}.peer-{number}"
    await command("docker", "create", "--init", "--name", name, image, "echo", "hello")
    await command("docker", "start", name)
    await command("docker", "wait", name)
    assert await command("docker", "logs", name) == b"hello\n"
    await command("docker", "rm", name)


async def silent_exec(sandbox: Sandbox) -> None:
    """One exec of ours."""

    async def take(stream: Stream, data: bytes) -> None:
        """Nothing comes."""

    assert (await sandbox.exec(["true"], on_output=take, tag=TAG)).exit_code == 0


async def compare(
    rounds: int, ours: Callable[[int], Awaitable[None]], peer: Callable[[int], Awaitable[None]]
) -> tuple[float, float]:
    """Median milliseconds of each, in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for which, call in enumerate((ours, peer) if number % 2 else (peer, ours)):
            begun = time.perf_counter()
            await call(number)
            if number:  # the first one warms up
                times[which if number % 2 else 1 - which].append((time.perf_counter() - begun) * 1000)
    return statistics.median(times[0]), statistics.median(times[1])


async def measure_docker(rounds: int) -> None:
    """Docker against its own command."""
    of = f"{rounds} rounds"
    image = ensure_busybox(docker_module.APIClient(version="auto", **docker_module.utils.kwargs_from_env()))
    backend = await DockerBackend.open()
    try:
        ours, peer = await compare(rounds, lambda n: life(backend, image, n), lambda n: docker_life(image, n))
        report.row("orchestra", "docker", of, {"life ms": ours, "docker command ms": peer, "ratio": ours / peer})
        report.goal("orchestra", "docker", of, "life against the docker command", ours / peer, most=1.0)
        sandbox = await sandboxes_of(backend).start_sandbox(NS, Task("sandbox", image=image), OWNER)
        ours, peer = await compare(
            rounds, lambda _: silent_exec(sandbox), lambda _: ignore(command("docker", "exec", sandbox.id, "true"))
        )
        report.row("orchestra", "docker", of, {"exec ms": ours, "docker command ms": peer, "ratio": ours / peer})
    finally:
        await backend.close_namespace(NS, grace=0)
        await backend.close()


async def measure_warm(rounds: int) -> None:
    """Taking over a sandbox that stood ready, against starting one."""
    of = f"{rounds} rounds"
    image = ensure_busybox(docker_module.APIClient(version="auto", **docker_module.utils.kwargs_from_env()))
    backend = await DockerBackend.open(BackendSettings(warm=WarmSettings(images={image: 1})))
    backend.keep_warm(OWNER.installation)
    times: dict[bool, list[float]] = {True: [], False: []}
    hits = WARM_SANDBOXES.labels("hit")._value.get()
    try:
        for number in range(2 * (rounds + 1)):
            warm = bool(number % 2)
            while not backend._warm or not backend._warm._pool.ready(image):
                await asyncio.sleep(0.05)
            task = Task("sandbox", image=image, limits=Limits(1000, 256 << 20, 200), warm=None if warm else False)
            begun = time.perf_counter()
            await backend.start_sandbox(NS, task, OWNER)
            if number > 1:
                times[warm].append((time.perf_counter() - begun) * 1000)
            await backend.close_namespace(NS, grace=0)
        assert WARM_SANDBOXES.labels("hit")._value.get() - hits == rounds + 1
    finally:
        await backend.close_namespace(NS, grace=0)
        await backend.close()
    ready, cold = (statistics.median(times[warm]) for warm in (True, False))
    report.row("orchestra", "docker", of, {"warm start ms": ready, "cold start ms": cold, "ratio": ready / cold})
    report.goal("orchestra", "docker", of, "warm start against cold start", ready / cold, most=0.25)


async def measure_pulls(rounds: int) -> None:
    """Ten who want the same image at once, against one."""
    if shutil.which("docker-registry") is None:
        print("orchestra    pulls    no docker-registry here")
        return
    api = docker_module.APIClient(version="auto", **docker_module.utils.kwargs_from_env())
    with tempfile.TemporaryDirectory() as folder, registry(Path(folder), free_port()) as host:
        image = f"{host}/bench:1"
        api.import_image_from_data(layer(8 << 20), f"{host}/bench", "1")  # of its own: nothing of it is here already
        for _ in api.push(f"{host}/bench", "1", stream=True, auth_config={"username": USER, "password": PASSWORD}):
            pass
        settings = ImageSettings(credentials={host: Credentials(USER, PASSWORD)})
        backend = await DockerBackend.open(BackendSettings(images=settings))

        async def want(count: int) -> None:
            api.remove_image(image)
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(backend.prepare(Task("x", image=image), quiet))

        try:
            ten, one = await compare(rounds, lambda _: want(10), lambda _: want(1))
        finally:
            await backend.close()
            api.remove_image(image)
    report.row("orchestra", "docker", f"{rounds} rounds", {"ten pulls ms": ten, "one pull ms": one, "ratio": ten / one})


def layer(size: int) -> bytes:
    """An image's files: one of so many bytes that do not compress."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        file = tarfile.TarInfo("random")
        file.size = size
        archive.addfile(file, io.BytesIO(os.urandom(size)))
    return buffer.getvalue()


async def quiet(line: str) -> None:
    """Nobody reads the progress."""


async def ignore(call: Awaitable[object]) -> None:
    """Its result is of no interest."""
    await call


async def measure_native(rounds: int) -> None:
    """Native against a bare subprocess."""
    of = f"{rounds} rounds"
    with tempfile.TemporaryDirectory() as folder:
        backend = NativeBackend(Path(folder) / "root")
        try:
            ours, peer = await compare(
                rounds, lambda n: life(backend, "", n), lambda _: ignore(command("echo", "hello"))
            )
            report.row("orchestra", "native", of, {"life ms": ours, "bare subprocess ms": peer, "ratio": ours / peer})
            report.goal("orchestra", "native", of, "life in ms", ours, most=3.1)
            report.goal("orchestra", "native", of, "life against a bare subprocess", ours / peer, most=1.5)
            sandbox = await backend.start_sandbox(NS, Task("sandbox"), OWNER)
            ours, peer = await compare(rounds, lambda _: silent_exec(sandbox), lambda _: ignore(command("true")))
            report.row("orchestra", "native", of, {"exec ms": ours, "bare subprocess ms": peer, "ratio": ours / peer})
        finally:
            await backend.close_namespace(NS, grace=0)
            await backend.close()


async def main() -> None:
    """All."""
    rounds = [int(word) for word in sys.argv[1:]] or [20, 300]
    await measure_native(rounds[-1])
    await measure_docker(rounds[0])
    await measure_warm(rounds[0])
    await measure_pulls(rounds[0])


if __name__ == "__main__":
    uvloop.run(main())
