"""Making and starting containers, once, however many ask."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from conveyor_runtime.errors import BackendError, Gone, ImageNotFound, TerminalError
from conveyor_runtime.orchestra import execs
from conveyor_runtime.orchestra.docker import spec
from conveyor_runtime.orchestra.docker.client import Conflicting, Engine
from conveyor_runtime.orchestra.docker.container import DockerContainer
from conveyor_runtime.orchestra.docker.image import digest_of
from conveyor_runtime.orchestra.docker.inspected import is_unstarted
from conveyor_runtime.orchestra.docker.removal import REMOVAL, remove_container
from conveyor_runtime.orchestra.docker.sandbox import DockerSandbox
from conveyor_runtime.orchestra.docker.stream import Connection
from conveyor_runtime.orchestra.docker.warm_names import namespace_of
from conveyor_runtime.orchestra.task import Owner, Task

__all__ = ["start_container", "start_sandbox", "start_warm"]

_OTHERS_START = 5.0  # seconds for another one to start what it has created


async def start_sandbox(engine: Engine, ns: str, task: Task, owner: Owner) -> DockerSandbox:
    """Start it, or find it."""
    name = spec.container_name(ns, task.id)
    found = spec.labels(ns, task.id, owner, "sandbox")
    volumes = spec.sandbox_volumes(ns, task)
    volume_labels = {**found, spec.KIND: "volume"}
    host = await engine.call(spec.host_config, engine, task, volumes, volume_labels)
    image = await engine.call(engine.api.inspect_image, task.image)
    for volume in volumes.values():
        await engine.call(engine.api.create_volume, volume, labels=volume_labels)
    config = _sandbox_config(task, image, ns, found)
    try:
        fresh, attributes = await _once(engine, name, config, host, lambda _: _begin(engine, name, task))
    except TerminalError:
        with contextlib.suppress(Gone):
            await engine.call(engine.api.remove_volume, volumes[task.workdir])
        raise
    _check_ours(name, attributes, ns, "sandbox")
    sandbox = DockerSandbox(engine, attributes)
    if fresh:
        await _settle(engine, sandbox, task)
    return sandbox


async def start_warm(engine: Engine, name: str, task: Task, found: Mapping[str, str]) -> Any:
    """Start a sandbox that nobody has asked for, labelled `found`; what it is, as inspected. Its workspace has no name
    and goes with it. One that is not started to its end is removed."""
    host = await engine.call(spec.host_config, engine, task, {task.workdir: ""}, found)
    image = await engine.call(engine.api.inspect_image, task.image)
    config = _sandbox_config(task, image, name, found)
    try:
        await engine.call(engine.api.create_container, name=name, host_config=host, **config)
        await _start(engine, name)
        attributes = await engine.call(engine.api.inspect_container, name)
        await _settle(engine, DockerSandbox(engine, attributes), task)
    except BaseException:
        await remove_container(engine, name)
        raise
    return attributes


async def start_container(
    engine: Engine, ns: str, task: Task, owner: Owner
) -> tuple[DockerContainer, Coroutine[Any, Any, None] | None]:
    """Start it, or find it; and the work, if any, of handing it its stdin."""
    name = spec.container_name(ns, task.id)
    image = await engine.call(engine.api.inspect_image, task.image)
    volume_labels = spec.labels(ns, task.id, owner, "volume")
    host = await engine.call(spec.host_config, engine, task, spec.volume_names(ns, task), volume_labels)
    config = spec.run_config(task, digest_of(image, task.image), spec.labels(ns, task.id, owner, "container"))
    attached: list[Connection] = []

    async def start(fresh: bool) -> None:
        if fresh or await _is_left_created(engine, name, task):
            if task.stdin != b"":
                attached[:] = [await engine.call(Connection.attach, engine.api, name)]
            await _begin(engine, name, task)

    _, attributes = await _once(engine, name, config, host, start)
    _check_ours(name, attributes, ns, "container")
    container = DockerContainer(engine, attributes)
    return container, container.feed(attached[0], task.stdin) if attached else None


def _sandbox_config(task: Task, image: Mapping[str, Any], mark: str, found: Mapping[str, str]) -> dict[str, Any]:
    user = str(task.user or (image.get("Config") or {}).get("User") or "0")
    return spec.container_config(task, user, digest_of(image, task.image), {execs.SANDBOX_MARK: mark}, found)


async def _once(
    engine: Engine, name: str, config: dict[str, Any], host: Any, start: Callable[[bool], Coroutine[Any, Any, None]]
) -> tuple[bool, Any]:
    """Create it unless it is there, have it started, and inspect it. Whether it is new, and what it is."""
    deadline = asyncio.get_running_loop().time() + REMOVAL
    while True:
        fresh = await _create(engine, name, config, host)
        try:
            await start(fresh)
            return fresh, await engine.call(engine.api.inspect_container, name)
        except (Gone, Conflicting):
            # Somebody is removing it: there is none until that is over.
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.1)


async def _create(engine: Engine, name: str, config: dict[str, Any], host: Any) -> bool:
    """Create the container; False if there is one of that name."""
    try:
        await engine.call(engine.api.create_container, name=name, host_config=host, **config)
    except Conflicting:
        return False
    except Gone as error:
        raise ImageNotFound(str(error)) from error
    except BackendError as error:
        if host.get("StorageOpt") and "quota" in str(error):  # whether xfs is mounted with quotas, no engine tells
            raise TerminalError(f"this docker engine cannot keep a disk limit: {error}") from error
        raise
    return True


async def _begin(engine: Engine, name: str, task: Task) -> None:
    try:
        await _start(engine, name)
    except (Gone, Conflicting):
        raise
    except BackendError as error:
        await remove_container(engine, name)  # refused, but only now: nothing of it stays
        if task.privileged and "not permitted" in str(error):
            raise TerminalError(f"this docker engine cannot start privileged containers: {error}") from error
        raise


async def _start(engine: Engine, name: str) -> None:
    await engine.call(engine.api.start, name)


async def _is_left_created(engine: Engine, name: str, task: Task) -> bool:
    """Whether whoever created it has not started it, and will not: it would have by now."""
    deadline = asyncio.get_running_loop().time() + _OTHERS_START
    while True:
        if not is_unstarted(await engine.call(engine.api.inspect_container, name)):
            return False
        # To start twice is no harm, to hand in the stdin twice is.
        if task.stdin == b"" or asyncio.get_running_loop().time() > deadline:
            return True
        await asyncio.sleep(0.05)


async def _settle(engine: Engine, sandbox: DockerSandbox, task: Task) -> None:
    """See that a new container lives, which its init hides: it starts without a shell too, only to end at once."""
    try:
        await sandbox.own(sandbox.workspace)
    except (Gone, BackendError) as error:
        attributes = await engine.call(engine.api.inspect_container, sandbox.id)
        if attributes["State"]["Running"]:
            raise
        raise TerminalError(f"a sandbox needs a shell, and image {task.image} has no sh that runs") from error


def _check_ours(name: str, attributes: Mapping[str, Any], ns: str, kind: str) -> None:
    found = attributes["Config"].get("Labels") or {}
    if namespace_of(name, found) != ns:
        raise BackendError(f"the container {name} exists and is not ours")
    if found.get(spec.KIND) != kind:
        raise TerminalError(f"{name} is there already, as a {found.get(spec.KIND)} and no {kind}")
