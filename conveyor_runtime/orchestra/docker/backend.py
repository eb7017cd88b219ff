"""The docker backend: namespaces as labels on containers and volumes of one engine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Self

from conveyor_runtime.errors import BackendError, Gone, TerminalError
from conveyor_runtime.kit.shielded import finish, hold
from conveyor_runtime.orchestra.base import Prepared, Progress
from conveyor_runtime.orchestra.docker import spec
from conveyor_runtime.orchestra.docker.client import Engine
from conveyor_runtime.orchestra.docker.container import DockerContainer
from conveyor_runtime.orchestra.docker.helper import Helper
from conveyor_runtime.orchestra.docker.images import Images
from conveyor_runtime.orchestra.docker.inspected import is_unstarted
from conveyor_runtime.orchestra.docker.placing import Placing
from conveyor_runtime.orchestra.docker.removal import remove_container
from conveyor_runtime.orchestra.docker.requests import check_kept
from conveyor_runtime.orchestra.docker.sandbox import DockerSandbox
from conveyor_runtime.orchestra.docker.starting import start_container, start_sandbox
from conveyor_runtime.orchestra.docker.volume import DockerVolume
from conveyor_runtime.orchestra.docker.warm import WarmSandboxes, reap_warm
from conveyor_runtime.orchestra.docker.warm_names import KEEPER, namespace_of, taken_owners
from conveyor_runtime.orchestra.registry import BackendSettings
from conveyor_runtime.orchestra.status import NamespaceInfo
from conveyor_runtime.orchestra.task import Owner, Task

__all__ = ["DockerBackend"]

log = logging.getLogger(__name__)


class DockerBackend:
    """See `conveyor_runtime.orchestra.base.Backend`, `capabilities.Sandboxes` and `capabilities.KeepsWarm`."""

    name = "docker"

    def __init__(self, engine: Engine, settings: BackendSettings | None = None) -> None:
        settings = settings or BackendSettings()
        self._engine = engine
        self._images = Images(engine, settings.images)
        self._placing = Placing(engine, settings.networks)
        self._host_paths = settings.host_paths
        self._warm_settings = settings.warm
        self._warm: WarmSandboxes | None = None
        self._at_work: set[asyncio.Task[None]] = set()
        self.node = engine.node
        self.storage = engine.root

    @classmethod
    async def open(cls, settings: BackendSettings | None = None) -> Self:
        """Connect to the engine the docker command would use. Raises `BackendUnavailable` if it does not answer,
        `ConfigError` for settings it cannot keep."""
        backend = cls(await Engine.open(), settings)
        try:
            await backend._placing.check_listed()
        except BaseException:
            await backend.close()
            raise
        return backend

    async def prepare(self, task: Task, on_progress: Progress) -> Prepared:
        """See the contract."""
        await self._check(task)  # whether it is to be a sandbox is not told yet
        return await self._images.require(task, on_progress)

    async def run(self, ns: str, task: Task, owner: Owner) -> DockerContainer:
        """See the contract."""
        await self._check(task)
        # A call that has left goes on when its caller does not: what it makes must be there before a cancelled caller
        # looks for what to remove.
        return await hold(self._run(ns, task, owner))

    async def _run(self, ns: str, task: Task, owner: Owner) -> DockerContainer:
        for mount in sorted(task.mounts, key=lambda mount: -mount.size_bytes):  # what may be refused comes first
            await self.create_volume(ns, mount.volume, owner, size_bytes=mount.size_bytes)
        async with self._placing.place(task) as placed:
            container, feeding = await start_container(self._engine, ns, placed, owner)
        if feeding is not None:
            self._go_on(feeding)
        self._watch(container)
        return container

    async def get(self, ns: str, task_id: str) -> DockerContainer:
        """See the contract."""
        attributes = await self._engine.call(self._engine.api.inspect_container, spec.container_name(ns, task_id))
        found = attributes["Config"].get("Labels") or {}
        if found.get(f"{spec.LABEL}namespace") != ns or found.get(spec.KIND) != "container":
            raise Gone(f"there is no container {task_id} in {ns}")
        if is_unstarted(attributes):  # nobody waits for its end, and the next `run` starts it
            raise Gone(f"the container {task_id} in {ns} was made, but not started")
        container = DockerContainer(self._engine, attributes)
        self._watch(container)
        return container

    async def create_volume(self, ns: str, name: str, owner: Owner, *, size_bytes: int = 0) -> DockerVolume:
        """See the contract."""
        found = spec.labels(ns, name, owner, "volume")
        options = {"size": str(size_bytes)} if size_bytes else None
        try:
            await self._engine.call(
                self._engine.api.create_volume, spec.volume_name(ns, name), driver_opts=options, labels=found
            )
        except BackendError as error:
            if options and "quota" in str(error):
                raise TerminalError(f"this docker engine cannot keep the size of volume {name}: {error}") from error
            raise
        return DockerVolume(self._engine, ns, name, found)

    async def start_sandbox(self, ns: str, task: Task, owner: Owner) -> DockerSandbox:
        """See the contract."""
        await self._check(task, sandbox=True)
        if self._warm is not None and (taken := await self._warm.take(ns, task, owner)) is not None:
            return taken
        async with self._placing.place(task) as placed:
            return await finish(start_sandbox(self._engine, ns, placed, owner))

    async def get_sandbox(self, ns: str, task_id: str) -> DockerSandbox:
        """See the contract."""
        name = spec.container_name(ns, task_id)
        attributes = await self._engine.call(self._engine.api.inspect_container, name)
        found = attributes["Config"].get("Labels") or {}
        if namespace_of(name, found) != ns or found.get(spec.KIND) != "sandbox":
            raise Gone(f"there is no sandbox {task_id} in {ns}")
        if not attributes["State"]["Running"]:
            raise Gone(f"the container {name} does not run: it is {attributes['State']['Status']}")
        return DockerSandbox(self._engine, attributes)

    async def close_namespace(self, ns: str, *, grace: float = 10.0) -> None:
        """See the contract."""
        labelled, taken = await asyncio.gather(
            self._containers(f"{spec.LABEL}namespace={ns}"), self._containers(KEEPER, name=rf"^/?{ns}\.")
        )
        removals = [self._remove_container(container, grace) for container in (*labelled, *taken)]
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
        containers, volumes = await self._containers(label), await self._volumes(label)
        things = [(item["Labels"], datetime.fromtimestamp(item["Created"], UTC)) for item in containers]
        things += [(item["Labels"], datetime.fromisoformat(item["CreatedAt"])) for item in volumes]
        by_ns: dict[str, list[tuple[Owner, datetime]]] = {}
        for found, created_at in things:
            ns = found.get(f"{spec.LABEL}namespace", "")
            if ns:
                by_ns.setdefault(ns, []).append((spec.owner_of(found), created_at))
        for ns, owner, created_at in taken_owners(installation, containers, volumes):
            by_ns.setdefault(ns, []).append((owner, created_at))
        return [
            NamespaceInfo(
                ns=ns,
                run_id=members[0][0].run_id,
                created_at=max(created_at for _, created_at in members),
                owners=tuple(dict.fromkeys(owner for owner, _ in members)),
            )
            for ns, members in sorted(by_ns.items())
        ]

    def keep_warm(self, installation: str) -> None:
        """See the contract."""
        wanted = self._warm_settings
        if self._warm is None and (wanted.images or wanted.on_request):
            self._warm = WarmSandboxes(self._engine, self._images, self._placing, wanted, installation)

    async def reap_warm(self, installation: str) -> list[str]:
        """See the contract."""
        return await reap_warm(self._engine, installation)

    async def close(self) -> None:
        """See the contract."""
        if self._warm is not None:
            await self._warm.close()
        at_work = list(self._at_work)
        for task in at_work:
            task.cancel()
        await asyncio.gather(*at_work, return_exceptions=True)
        await self._images.close()
        await self._engine.close()

    async def _check(self, task: Task, *, sandbox: bool = False) -> None:
        check_kept(task, self._engine, self._host_paths, sandbox=sandbox)
        await self._placing.check(task)

    def _watch(self, container: DockerContainer) -> None:
        """End it when its time is over, for as long as this object lives; who gets it later does so, too."""
        limit = container.timeout
        if limit is not None:
            self._go_on(_end_in_time(container, *limit))

    def _go_on(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    async def _containers(self, label: str, **more: str) -> list[dict[str, Any]]:
        found = await self._engine.call(self._engine.api.containers, all=True, filters={"label": label, **more})
        return list(found)

    async def _volumes(self, label: str) -> list[dict[str, Any]]:
        found = await self._engine.call(self._engine.api.volumes, filters={"label": label})
        return list(found.get("Volumes") or ())

    async def _remove_container(self, container: dict[str, Any], grace: float) -> None:
        identity = container["Id"]
        if container["State"] == "running" and grace > 0:
            if container["Labels"].get(spec.KIND) == "container":
                with suppress(Gone):  # somebody else closes, too
                    await (await self._known(identity)).stop(grace)
            else:
                await Helper(self._engine, identity).quiet(grace)
        await remove_container(self._engine, identity)

    async def _known(self, container: str) -> DockerContainer:
        return DockerContainer(self._engine, await self._engine.call(self._engine.api.inspect_container, container))


async def _end_in_time(container: DockerContainer, over_at: datetime, grace: float) -> None:
    waiting = asyncio.ensure_future(container.wait())
    try:
        # A moment later: by the engine's own clock it must be over, too, to count as a timeout.
        await asyncio.wait([waiting], timeout=(over_at - datetime.now(UTC)).total_seconds() + 0.05)
        if not waiting.done():
            await container.end(grace)
    except BackendError as error:
        log.warning("cannot end a container whose time is over: %s", error, extra={"action": "timeout_failed"})
    finally:
        waiting.cancel()
        await asyncio.wait([waiting])
        if not waiting.cancelled():
            waiting.exception()
