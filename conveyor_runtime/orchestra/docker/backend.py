"""The docker backend: namespaces as labels on containers and volumes of one engine."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, Self

from conveyor_runtime.errors import BackendError, BackendUnavailable, Gone, ImageNotFound, TerminalError
from conveyor_runtime.orchestra import execs
from conveyor_runtime.orchestra.base import Container, Prepared, Progress, Volume
from conveyor_runtime.orchestra.docker import spec
from conveyor_runtime.orchestra.docker.client import Conflicting, Engine
from conveyor_runtime.orchestra.docker.helper import Helper
from conveyor_runtime.orchestra.docker.image import require_image
from conveyor_runtime.orchestra.docker.removal import REMOVAL, remove_container
from conveyor_runtime.orchestra.docker.sandbox import DockerSandbox
from conveyor_runtime.orchestra.status import NamespaceInfo
from conveyor_runtime.orchestra.task import Owner, Task

__all__ = ["DockerBackend"]


class DockerBackend:
    """See `conveyor_runtime.orchestra.base.Backend`."""

    name = "docker"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.node = engine.node

    @classmethod
    async def open(cls) -> Self:
        """Connect to the engine the docker command would use. Raises `BackendUnavailable` if it does not answer."""
        return cls(await Engine.open())

    async def prepare(self, task: Task, on_progress: Progress) -> Prepared:
        """See the contract."""
        await self._engine.call(spec.host_config, self._engine.api, "check", task)
        await require_image(self._engine, task, on_progress)
        return Prepared()

    async def start_sandbox(self, ns: str, task: Task, owner: Owner) -> DockerSandbox:
        """See the contract."""
        name = spec.container_name(ns, task.id)
        found = spec.labels(ns, task.id, owner)
        host = await self._engine.call(spec.host_config, self._engine.api, ns, task)
        for volume in spec.volume_names(ns, task).values():
            await self._engine.call(self._engine.api.create_volume, volume, labels=found)
        image = await self._engine.call(self._engine.api.inspect_image, task.image)
        user = task.user or (image.get("Config") or {}).get("User") or "0"
        config = spec.container_config(task, user, {execs.SANDBOX_MARK: ns}, found)
        deadline = asyncio.get_running_loop().time() + REMOVAL
        while True:
            fresh = await self._create(name, config, host)
            try:
                await self._engine.call(self._engine.api.start, name)
                attributes = await self._inspect(name)
            except (Gone, Conflicting):
                # Somebody is removing it: there is none until that is over.
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.1)
                continue
            break
        if (attributes["Config"].get("Labels") or {}).get(f"{spec.LABEL}namespace") != ns:
            raise BackendError(f"the container {name} exists and is not ours")
        sandbox = DockerSandbox(self._engine, attributes)
        if fresh:
            await self._settle(sandbox, task)
        return sandbox

    async def get_sandbox(self, ns: str, task_id: str) -> DockerSandbox:
        """See the contract."""
        name = spec.container_name(ns, task_id)
        attributes = await self._inspect(name)
        if (attributes["Config"].get("Labels") or {}).get(f"{spec.LABEL}namespace") != ns:
            raise Gone(f"there is no container {task_id} in {ns}")
        if not attributes["State"]["Running"]:
            raise Gone(f"the container {name} does not run: it is {attributes['State']['Status']}")
        return DockerSandbox(self._engine, attributes)

    async def run(self, ns: str, task: Task, owner: Owner) -> Container:
        """Not yet."""
        raise TerminalError("this backend runs sandboxes only")

    async def get(self, ns: str, task_id: str) -> Container:
        """Not yet."""
        raise Gone(f"there is no container {task_id} in {ns}")

    async def create_volume(self, ns: str, name: str, owner: Owner, *, size_bytes: int = 0) -> Volume:
        """Not yet."""
        raise TerminalError("this backend runs sandboxes only")

    async def close_namespace(self, ns: str, *, grace: float = 10.0) -> None:
        """See the contract."""
        containers = await self._containers(f"{spec.LABEL}namespace={ns}")
        removals = [self._remove_container(container, grace) for container in containers]
        outcomes = await asyncio.gather(*removals, return_exceptions=True)
        failures = [str(outcome) for outcome in outcomes if isinstance(outcome, BaseException)]
        for volume in await self._volumes(f"{spec.LABEL}namespace={ns}"):
            try:
                await self._engine.call(self._engine.api.remove_volume, volume["Name"])
            except Gone:
                continue
            except BackendError as error:
                failures.append(f"volume {volume['Name']}: {error}")
        if failures:
            raise BackendError(f"{ns} is not closed: {'; '.join(failures)}")

    async def namespaces(self, installation: str) -> list[NamespaceInfo]:
        """See the contract."""
        label = f"{spec.LABEL}installation={installation}"
        things = [
            (item["Labels"], datetime.fromtimestamp(item["Created"], UTC)) for item in await self._containers(label)
        ]
        things += [(item["Labels"], datetime.fromisoformat(item["CreatedAt"])) for item in await self._volumes(label)]
        by_ns: dict[str, list[tuple[Owner, datetime]]] = {}
        for found, created_at in things:
            ns = found.get(f"{spec.LABEL}namespace", "")
            if ns:
                by_ns.setdefault(ns, []).append((spec.owner_of(found), created_at))
        return [
            NamespaceInfo(
                ns=ns,
                run_id=members[0][0].run_id,
                created_at=max(created_at for _, created_at in members),
                owners=tuple(dict.fromkeys(owner for owner, _ in members)),
            )
            for ns, members in sorted(by_ns.items())
        ]

    async def close(self) -> None:
        """See the contract."""
        await self._engine.close()

    async def _settle(self, sandbox: DockerSandbox, task: Task) -> None:
        """See that a new container lives, which its init hides: it starts without a shell too, only to end at once."""
        try:
            await sandbox.own(sandbox.workspace)
        except (Gone, BackendError) as error:
            attributes = await self._inspect(sandbox.id)
            if attributes["State"]["Running"]:
                raise
            raise TerminalError(f"a sandbox needs a shell, and image {task.image} has no sh that runs") from error

    async def _create(self, name: str, config: dict[str, Any], host: Any) -> bool:
        """Create the container; False if there is one of that name."""
        try:
            await self._engine.call(self._engine.api.create_container, name=name, host_config=host, **config)
        except Conflicting:
            return False
        except Gone as error:
            raise ImageNotFound(str(error)) from error
        return True

    async def _inspect(self, name: str) -> Any:
        return await self._engine.call(self._engine.api.inspect_container, name)

    async def _containers(self, label: str) -> list[dict[str, Any]]:
        found = await self._engine.call(self._engine.api.containers, all=True, filters={"label": label})
        return list(found)

    async def _volumes(self, label: str) -> list[dict[str, Any]]:
        found = await self._engine.call(self._engine.api.volumes, filters={"label": label})
        return list(found.get("Volumes") or ())

    async def _remove_container(self, container: dict[str, Any], grace: float) -> None:
        identity = container["Id"]
        if container["State"] == "running" and grace > 0:
            await self._quiet(identity, grace)
        await remove_container(self._engine, identity)

    async def _quiet(self, container: str, grace: float) -> None:
        """Give the execs that still run the chance to end by themselves."""
        helper = Helper(self._engine, container)
        deadline = asyncio.get_running_loop().time() + grace
        try:
            left = await helper.sweep([], 15, "0")
            while left and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.1)
                left = await helper.sweep([], 0, "0")
        except (BackendError, TerminalError) as error:
            if isinstance(error, BackendUnavailable):
                raise
            # A container that cannot be looked after (paused, hanging, without sh) is removed all the same.
