"""container-run on real backends: tasks that end, and services that are kept."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Any, cast

import jsonschema_rs
import pytest

import pipelines
from conveyor_runtime.config import DriverSettings
from conveyor_runtime.errors import Gone, RetryableError, TaskFailed, TaskTimedOut, TerminalError
from conveyor_runtime.models import DriverResult, Resource
from conveyor_runtime.orchestra import Backend, BackendSettings, Limits, Orchestra, namespace
from conveyor_runtime.reconcile import DriverLogger, RunContext
from drivers.container_run import driver
from drivers.sandboxes import owner_of
from drivers.task_spec import TaskSpec
from tests.contract.conftest import sleeping, unique, until

ID = "0198c0de-0000-7000-8000-000000000001"


class Log:
    """What the driver said."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def info(self, message: str, **labels: object) -> None:
        self.lines.append(("", message))

    async def line(self, text: str, *, stream: str = "stdout", level: str = "info") -> None:
        self.lines.append((stream, text))


class World:
    """A resource of type task, and its driver."""

    def __init__(self, orchestra: Orchestra, image: str | None) -> None:
        self.orchestra = orchestra
        self.image = image
        self.log = Log()
        self.installation = f"t{token_hex(4)}"  # others of these tests use the same engine
        self.settings = DriverSettings(kill_grace=0.3)
        self.runs = 0

    @property
    def backend(self) -> Backend:
        return self.orchestra.default

    @property
    def service(self) -> str:
        return namespace(self.installation, f"service-{ID}")

    def context(self, **changes: Any) -> RunContext:
        found = RunContext(
            run_id=f"run-{self.runs}",
            step="container-run",
            attempt=1,
            takeover=0,
            driver="container-run",
            event="create",
            node=self.backend.node,
            installation=self.installation,
            settings=self.settings,
            orchestra_=self.orchestra,
        )
        return replace(found, **changes)

    async def __call__(self, event: str, context: RunContext | None = None, **spec: Any) -> DriverResult:
        if context is None:
            self.runs += 1
        payload = Resource[TaskSpec].model_validate(
            {"id": ID, "name": "web", "resource": "task", "spec": {"image": self.image, **spec}}
        )
        context = context or self.context()
        logger = cast(DriverLogger, self.log)
        async with asyncio.timeout(60):
            result: DriverResult = await driver.reconcile(payload, event, context.run_id, logger, context)
        return result

    async def containers(self) -> list[str]:
        """Ids of the service's containers that run."""
        infos = await self.backend.namespaces(self.installation)
        found = []
        for step in {owner.step for info in infos if info.ns == self.service for owner in info.owners}:
            try:
                status = await (await self.backend.get(self.service, step)).status()
            except Gone:
                continue
            found += [step] if not status.done else []
        return found


@pytest.fixture(params=["native", pytest.param("docker", marks=pytest.mark.docker)])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    image = request.getfixturevalue("busybox") if request.param == "docker" else None
    orchestra = await Orchestra.open(request.param, BackendSettings(native_root=tmp_path / "native"))
    found = World(orchestra, image)
    yield found
    await found("delete")
    assert await found.backend.namespaces(found.installation) == []
    await orchestra.close()


def sh(script: str) -> dict[str, Any]:
    return {"command": ["sh", "-c", script]}


async def test_a_task_runs_to_its_end(world: World) -> None:
    result = await world("create", **sh('echo "hello $WHO"; echo oops >&2; printf end'), env={"WHO": "you"})
    assert result.success
    said = [line for line in world.log.lines if line[0]]
    assert sorted(said) == [("stderr", "oops"), ("stdout", "end"), ("stdout", "hello you")]
    assert await world.backend.namespaces(world.installation) == []


async def test_what_a_task_may_see_of_the_machine(world: World, tmp_path: Path) -> None:
    mounts = [{"source": str(tmp_path), "path": "/seen"}]
    with pytest.raises(TerminalError, match="host"):  # nothing is listed, and native has no mounts of this kind
        await world("create", **sh("true"), hostMounts=mounts)


async def test_what_it_used_is_told(world: World) -> None:
    result = await world("create", **sh("sleep 2.2"))  # a backend's first sample comes after a second
    usage = result.data["usage"]
    assert 1 <= len(usage["points"]) <= 3
    assert usage["peakMemoryBytes"] >= usage["points"][0]["memoryBytes"] > 0


async def test_a_task_that_fails(world: World) -> None:
    with pytest.raises(TaskFailed, match="exit code 3") as failure:
        await world("create", **sh("exit 3"))
    assert failure.value.exit_code == 3
    with pytest.raises(TaskFailed, match="after 2 restarts"):
        await world("create", **sh("exit 4"), restart="on-failure:2")
    with pytest.raises(TaskTimedOut, match="1 s"):
        await world("create", **sh("sleep 100"), timeout=1)
    assert await world.backend.namespaces(world.installation) == []


async def test_a_task_that_is_cancelled(world: World) -> None:
    number = unique()
    running = asyncio.create_task(world("create", **sh(f"sleep {number}")))
    await until(lambda: sleeping(number), 30)
    running.cancel()
    await asyncio.wait([running], timeout=30)
    assert running.cancelled()
    assert sleeping(number) == []
    assert await world.backend.namespaces(world.installation) == []


async def test_a_worker_that_takes_over_finds_the_container(world: World, tmp_path: Path) -> None:
    context = world.context()
    spec = TaskSpec.model_validate({"image": world.image, **sh("echo once; sleep 1; exit 6")})
    ns = namespace(world.installation, context.run_id)
    await world.backend.run(ns, spec.as_task("task-1", 0.3), owner_of(context))
    with pytest.raises(TaskFailed, match="exit code 6"):
        # What it is told now does not matter: the container is there.
        await world("create", replace(context, takeover=1), **sh("echo twice; exit 7"))
    assert [text for stream, text in world.log.lines if stream] == ["once"]


async def test_a_worker_that_was_taken_over_from_leaves_the_container_alone(world: World) -> None:
    """I6: another follows it. The one is told while it still runs, the other sees it end before it is told."""
    number = unique()
    context = world.context()
    one = asyncio.create_task(world("create", context, **sh(f"sleep {number}")))
    await until(lambda: sleeping(number), 30)
    context.abandoned = True
    one.cancel()
    await asyncio.wait([one], timeout=30)
    assert one.cancelled() and sleeping(number)
    held = asyncio.Event()
    held.set()
    other = asyncio.create_task(world("create", world.context(lease_held=held.is_set), **sh("exit 7")))
    await asyncio.sleep(0.5)
    held.clear()
    os.kill(sleeping(number)[0], signal.SIGKILL)
    with pytest.raises(RetryableError, match="lost its lease"):
        await other
    with pytest.raises(TaskFailed, match="was killed"):
        await world("create", world.context(takeover=1), **sh("exit 7"))


async def test_a_service_is_started_once_and_kept(world: World) -> None:
    spec = {**sh("echo up; sleep 1000"), "restart": "always"}
    assert (await world("create", **spec)).message == "the service was started"
    (first,) = await world.containers()
    started = (await (await world.backend.get(world.service, first)).status()).started_at
    for event in ("resync", "create"):
        assert (await world(event, **spec)).message == "the service runs"
    assert await world.containers() == [first]
    assert (await (await world.backend.get(world.service, first)).status()).started_at == started


async def test_a_resync_repairs_what_was_stopped_or_removed(world: World) -> None:
    spec = {**sh("sleep 1000"), "restart": "unless-stopped"}
    await world("create", **spec)
    (first,) = await world.containers()
    container = await world.backend.get(world.service, first)
    await container.stop(0)
    assert await world.containers() == []
    assert (await world("resync", **spec)).message == "the service was started"
    assert await world.containers() == [first]
    await (await world.backend.get(world.service, first)).cleanup()
    await world("resync", **spec)
    assert await world.containers() == [first]


async def test_an_update_replaces_and_keeps_the_volumes(world: World) -> None:
    mounts = [{"volume": "data", "path": "data"}]
    await world("create", **sh("echo old >> data/log; sleep 1000"), restart="always", mounts=mounts)
    (old,) = await world.containers()
    await asyncio.sleep(0.3)
    await world("update", **sh("cat data/log; sleep 1000"), restart="always", mounts=mounts)
    (new,) = await world.containers()
    assert new != old
    with pytest.raises(Gone):
        await world.backend.get(world.service, old)
    said = b""

    async def take(stream: str, data: bytes) -> None:
        nonlocal said
        said += data

    async with asyncio.timeout(20):
        while not said:
            await (await world.backend.get(world.service, new)).logs(cast(Any, take), follow=False)
            await asyncio.sleep(0.05)
    assert said.startswith(b"old\n")


async def test_a_service_that_becomes_a_task_is_removed(world: World) -> None:
    await world("create", **sh("sleep 1000"), restart="always")
    await world("update", **sh("true"))
    assert await world.containers() == []
    assert await world.backend.namespaces(world.installation) == []


@pytest.mark.docker
async def test_a_service_that_moves_to_another_backend_is_on_that_one_only(tmp_path: Path, busybox: str) -> None:
    orchestra = await Orchestra.open("docker,native", BackendSettings(native_root=tmp_path / "native"))
    world, native = World(orchestra, busybox), orchestra.pick("native")
    try:
        await world("create", **sh("sleep 1000"), restart="always", backend="docker")
        await world("update", **sh("sleep 1000"), restart="always", backend="native")
        assert await orchestra.pick("docker").namespaces(world.installation) == []
        assert [info.ns for info in await native.namespaces(world.installation)] == [world.service]
        await world("update", **sh("sleep 1000"), restart="always", backend="docker")
        assert await native.namespaces(world.installation) == []
        assert len(await world.containers()) == 1
    finally:
        await world("delete")
        await orchestra.close()


def test_an_upgrade_restarts_no_service() -> None:
    """A spec's fingerprint names its container: it must be what it was in earlier versions."""
    spec = TaskSpec.model_validate({"image": "web:1", "command": ["serve"], "restart": "always", "ports": [80]})
    assert spec.fingerprint() == "8ffd573344ec"


async def test_delete_removes_it(world: World) -> None:
    number = unique()
    await world("create", **sh(f"sleep {number}"), restart="always")
    await until(lambda: sleeping(number), 30)
    await world("delete")
    assert sleeping(number) == []
    assert await world.backend.namespaces(world.installation) == []
    await world("delete")


async def test_what_a_backend_cannot_keep_is_refused(world: World) -> None:
    if world.backend.name == "native":
        with pytest.raises(TerminalError, match="ports"):
            await world("create", **sh("true"), ports=[80])
    with pytest.raises(TerminalError, match="timeout"):
        await world("create", **sh("true"), restart="always", timeout=5)


SPECS: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"image": "a", "command": ["x"], "env": {"A": 1}, "ports": [80, {"container": 53, "protocol": "udp"}]}, True),
    ({"mounts": [{"volume": "v", "path": "p", "readOnly": True}], "restart": "on-failure:3", "timeout": "5m"}, True),
    ({"limits": {"cpu": "500m", "memory": "1Gi", "pids": 5}, "restart": "unless-stopped"}, True),
    ({"restart": "sometimes"}, False),
    ({"restart": "on-failure:0"}, False),
    ({"ports": [0]}, False),
    ({"ports": [{"host": 80}]}, False),
    ({"mounts": [{"volume": "../x", "path": "p"}]}, False),
    ({"workdir": "here"}, False),
]


@pytest.mark.parametrize(("spec", "fine"), SPECS)
def test_the_model_and_the_schema_agree(spec: dict[str, Any], fine: bool) -> None:
    schema = pipelines.definition("task")["schema"]
    assert schema == TaskSpec.model_json_schema()
    assert jsonschema_rs.Draft202012Validator(schema).is_valid(spec) == fine
    try:
        TaskSpec.model_validate(spec)
    except ValueError:
        assert not fine
    else:
        assert fine


@pytest.mark.parametrize("restart", ["no", "on-failure:3"])
def test_a_task_that_ends_holds_its_limits_of_the_node(restart: str) -> None:
    assert held(restart=restart, limits={"cpu": 2, "memory": "1Gi"}) == Limits(cpu_milli=2000, memory_bytes=2**30)


@pytest.mark.parametrize("restart", ["always", "unless-stopped"])
def test_a_service_holds_nothing_as_it_outlives_its_run(restart: str) -> None:
    assert held(restart=restart, limits={"cpu": 2}) == Limits()


def held(**spec: Any) -> Limits:
    assert driver.uses is not None
    return driver.uses(Resource[TaskSpec].model_validate({"id": ID, "name": "web", "resource": "task", "spec": spec}))
