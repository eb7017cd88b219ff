"""Sandboxes that are started before anybody asks, and handed over by renaming them."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from conveyor_runtime.config import WarmSettings
from conveyor_runtime.errors import BackendError, Gone
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.orchestra.base import Prepared
from conveyor_runtime.orchestra.docker import spec, warm_names
from conveyor_runtime.orchestra.docker.client import Conflicting, Engine
from conveyor_runtime.orchestra.docker.images import Images
from conveyor_runtime.orchestra.docker.placing import Placing
from conveyor_runtime.orchestra.docker.removal import remove_container
from conveyor_runtime.orchestra.docker.sandbox import DockerSandbox
from conveyor_runtime.orchestra.docker.starting import start_warm
from conveyor_runtime.orchestra.task import Limits, Owner, Task
from conveyor_runtime.orchestra.warm import WarmPool
from conveyor_runtime.telemetry.metrics import WARM_SANDBOXES

__all__ = ["WarmSandboxes", "reap_warm"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Member:
    name: str
    image_id: str


class WarmSandboxes:
    """Those that this process keeps."""

    def __init__(
        self, engine: Engine, images: Images, placing: Placing, settings: WarmSettings, installation: str
    ) -> None:
        self._engine, self._images, self._placing = engine, images, placing
        self._settings = settings
        self._labels = warm_names.kept_labels(installation, settings.ttl)
        self._pool = WarmPool(self._prepare, self._make, self._discard, ttl=settings.ttl)
        self._requested: dict[str, None] = {}  # images, the one asked for last at the end
        for image, size in settings.images.items():
            self._pool.keep(image, size)

    async def take(self, ns: str, task: Task, owner: Owner) -> DockerSandbox | None:
        """One that stood ready and is this task's now; None if there is none, or there is a sandbox of this task."""
        if task.warm is False or not _is_plain(task):
            return None
        if task.warm:
            self._request(task.image)
        if self._pool.ready(task.image) is None or await self._is_there(spec.container_name(ns, task.id)):
            return None
        found = await self._take(ns, task, owner)
        WARM_SANDBOXES.labels("miss" if found is None else "hit").inc()
        return found

    async def close(self) -> None:
        """Take away what nobody took."""
        await self._pool.close()

    def _request(self, image: str) -> None:
        if image in self._settings.images or not self._settings.on_request:
            return
        self._requested.pop(image, None)
        self._requested[image] = None
        if len(self._requested) > self._settings.on_request:
            oldest = next(iter(self._requested))
            del self._requested[oldest]
            self._pool.forget(oldest)
        self._pool.keep(image, 1, seconds=self._settings.ttl)

    async def _take(self, ns: str, task: Task, owner: Owner) -> DockerSandbox | None:
        image_id = (await self._engine.call(self._engine.api.inspect_image, task.image))["Id"]
        while (member := self._pool.take(task.image)) is not None:
            try:
                if member.image_id == image_id:
                    return await finish(self._hand_over(member, ns, task, owner))
                self._pool.drop(member)  # the image's name means another one now
            except Conflicting:  # the task has got a sandbox meanwhile
                self._pool.drop(member)
                return None
            except Gone:
                self._pool.drop(member)
            except BaseException:
                self._pool.drop(member)  # its limits may be changed already; if it is the task's, this misses it
                raise
        return None

    async def _hand_over(self, member: _Member, ns: str, task: Task, owner: Owner) -> DockerSandbox:
        """Raises `Gone` if it is not there or does not run, `Conflicting` if the task has got a sandbox meanwhile.

        Until it is renamed it is this process's and dies with it; from then on it is whole.
        """
        attributes = await self._engine.call(self._engine.api.inspect_container, member.name)
        if not attributes["State"]["Running"]:
            raise Gone(f"{member.name} does not run")
        if task.limits != Limits():
            await self._engine.call(_limit, self._engine.api, member.name, task.limits)
        name = spec.container_name(ns, task.id)
        mark = spec.labels(ns, task.id, owner, "volume")
        await self._engine.call(self._engine.api.create_volume, warm_names.taken_mark(name), labels=mark)
        await self._engine.call(self._engine.api.rename, member.name, name)
        return DockerSandbox(self._engine, {**attributes, "Name": f"/{name}"})

    async def _is_there(self, name: str) -> bool:
        try:
            await self._engine.call(self._engine.api.inspect_container, name)
        except Gone:
            return False
        return True

    async def _prepare(self, image: str) -> Prepared:
        return await self._images.require(Task("warm", image=image), _to_nobody)

    async def _make(self, image: str) -> _Member:
        name = warm_names.new_name()
        async with self._placing.place(Task("warm", image=image)) as task:
            attributes = await start_warm(self._engine, name, task, self._labels)
        return _Member(name, str(attributes["Image"]))

    async def _discard(self, member: _Member) -> None:
        # By its name: should it be somebody's after all, it bears another one.
        await remove_container(self._engine, member.name)


async def reap_warm(engine: Engine, installation: str) -> list[str]:
    """Remove what dead processes kept ready, and workspaces whose containers somebody removed by hand."""
    labels = [f"{spec.LABEL}installation={installation}", warm_names.KEEPER]
    reaped = []
    for container in await engine.call(engine.api.containers, all=True, filters={"label": labels}):
        name = container["Names"][0].lstrip("/")
        created_at = datetime.fromtimestamp(container["Created"], UTC)
        if warm_names.is_kept(name) and warm_names.is_left(container["Labels"], created_at):
            try:
                await remove_container(engine, name)
                reaped.append(name)
            except BackendError as error:
                log.warning("cannot remove %s, will try again: %s", name, error, extra={"action": "reap_failed"})
    unused = await engine.call(engine.api.volumes, filters={"label": labels, "dangling": ["true"]})
    for volume in unused.get("Volumes") or ():
        with suppress(BackendError):  # used after all, or gone; it is met again
            await engine.call(engine.api.remove_volume, volume["Name"])
    return reaped


def _is_plain(task: Task) -> bool:
    """Whether it asks for nothing that must be known when a container is created."""
    limits = replace(Limits(), disk_bytes=task.limits.disk_bytes)
    return replace(task, id="x", limits=limits, pull="never", warm=None) == Task("x", task.image, pull="never")


def _limit(api: Any, name: str, limits: Limits) -> None:
    """Blocking. The client's own `update_container` knows no limit of processes."""
    changes = api.create_host_config(**spec.limit_options(limits))
    api._raise_for_status(api._post_json(api._url("/containers/{0}/update", name), data=changes))


async def _to_nobody(line: str) -> None:
    """Nobody waits for this pull."""
