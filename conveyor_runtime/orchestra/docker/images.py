"""The images an engine has and gets: shared pulls, retries, credentials, and room made for new ones."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from conveyor_runtime.config import Credentials, ImageSettings
from conveyor_runtime.errors import BackendError, BackendUnavailable, Gone, ImageNotFound
from conveyor_runtime.kit.backoff import exponential
from conveyor_runtime.orchestra.base import Prepared, Progress
from conveyor_runtime.orchestra.cache import CachedImage, ImageCache, clean
from conveyor_runtime.orchestra.docker.client import Engine
from conveyor_runtime.orchestra.docker.image import digest_of, pull
from conveyor_runtime.orchestra.flights import Flights
from conveyor_runtime.orchestra.reference import Reference, parse_reference
from conveyor_runtime.orchestra.task import Task

__all__ = ["Images"]

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds before a pull is tried again


class Images:
    """The images of one engine, as far as this process uses them."""

    def __init__(self, engine: Engine, settings: ImageSettings) -> None:
        self._engine = engine
        self._settings = settings
        self._flights: Flights[None] = Flights()
        self._listeners: dict[str, list[Progress]] = {}
        self._cache = ImageCache(settings.cache_bytes, settings.cache_exempt) if settings.cache_bytes else None
        self._released = asyncio.Event()
        self._cleaning: asyncio.Task[None] | None = None

    async def require(self, task: Task, on_progress: Progress) -> Prepared:
        """Have the task's image, by its pull policy; it is not cleaned away until what is returned is closed.

        Raises `ImageNotFound` when there is no such image or these credentials may not read it, `BackendUnavailable`
        when its registry could not be asked, `TerminalError` when its name is none.
        """
        reference = parse_reference(task.image)
        found = None
        if task.pull != "always":
            try:
                found = await self._inspect(task.image)
            except ImageNotFound as error:
                if task.pull == "never":
                    raise ImageNotFound(f"image {task.image} is not here, and the pull policy is never") from error
        if found is None:
            await self._pull(task.image, reference, on_progress)
            found = await self._inspect(task.image)
        return Prepared(digest_of(found, task.image), self._hold(found))

    async def close(self) -> None:
        """Stop making room."""
        if self._cleaning is not None:
            self._cleaning.cancel()
            await asyncio.wait([self._cleaning])

    async def _inspect(self, image: str) -> Any:
        return await self._engine.call(self._engine.api.inspect_image, image)

    async def _pull(self, image: str, reference: Reference, on_progress: Progress) -> None:
        key = str(reference)
        listeners = self._listeners.setdefault(key, [])
        listeners.append(on_progress)
        try:
            await self._flights.join(key, lambda: self._patiently(image, reference, listeners))
        finally:
            with suppress(ValueError):
                listeners.remove(on_progress)
            if not listeners:
                self._listeners.pop(key, None)

    async def _patiently(self, image: str, reference: Reference, listeners: list[Progress]) -> None:
        async def tell(line: str) -> None:
            for listener in list(listeners):
                try:
                    await listener(line)
                except Exception as error:  # noqa: BLE001 - one who cannot listen must not end the others' pull
                    log.debug("a listener of a pull failed: %s", error)
                    with suppress(ValueError):
                        listeners.remove(listener)

        failures = 0
        while True:
            try:
                return await pull(self._engine, image, self._credentials(reference), tell)
            except BackendUnavailable as error:
                failures += 1
                if failures > self._settings.pull_retries:
                    raise
                pause = exponential(failures, initial=_FIRST_PAUSE, maximum=_LONGEST_PAUSE)
                await tell(f"{error}; trying again in {pause:.1f} s")
                await asyncio.sleep(pause)

    def _credentials(self, reference: Reference) -> Mapping[str, str] | None:
        """Those given for exactly this registry; None leaves it to the docker command's own, which are kept by registry
        as well."""
        found: Credentials | None = self._settings.credentials.get(reference.host)
        return None if found is None else {"username": found.user, "password": found.password}

    def _hold(self, found: dict[str, Any]) -> Callable[[], None] | None:
        cache = self._cache
        if cache is None:
            return None
        if self._cleaning is None:
            self._cleaning = asyncio.create_task(self._clean(cache))
        image = _cached(found)
        cache.mark_busy(image)

        def release() -> None:
            cache.mark_free(image)
            self._released.set()

        self._released.set()
        return release

    async def _clean(self, cache: ImageCache) -> None:
        is_looked_through = False
        while True:
            await self._released.wait()
            self._released.clear()
            try:
                if not is_looked_through:
                    for listed in await self._list():
                        cache.seen(listed)
                    is_looked_through = True
                if cache.is_full:
                    await self._make_room(cache)
            except BackendError as error:
                log.warning("cannot make room, will try again: %s", error, extra={"action": "image_room_failed"})

    async def _make_room(self, cache: ImageCache) -> None:
        # What a container was made of is used, though whoever started that has long let go of it.
        used = await self._used()
        busy = [image for image in await self._list() if image.id in used]
        for image in busy:
            cache.mark_busy(image)
        try:
            await clean(cache, partial(self._remove, cache), per_second=self._settings.removals_per_second)
        finally:
            for image in busy:
                cache.mark_free(image)

    async def _remove(self, cache: ImageCache, image: CachedImage) -> None:
        """Take away its names, and with the last one it. The engine would do so at once, but not for one that has names
        in several repositories; and it looks for containers at the last name only."""
        try:
            found = await self._inspect(image.id)
            if cache.is_exempt(_cached(found)):
                raise Gone(f"{image.id} has got a name that is exempt")
            if image.id in await self._used():
                raise BackendError(f"a container has been made of {image.id}")
            for name in [*(found.get("RepoTags") or ()), *(found.get("RepoDigests") or ())] or [image.id]:
                with suppress(ImageNotFound):  # a digest goes with the last tag of its repository
                    await self._engine.call(self._engine.api.remove_image, name)
        except ImageNotFound as error:
            raise Gone(str(error)) from error

    async def _list(self) -> list[CachedImage]:
        return [_cached(image) for image in await self._engine.call(self._engine.api.images)]

    async def _used(self) -> set[str]:
        """The images that containers are made of, also of such that do not run."""
        return {str(it["ImageID"]) for it in await self._engine.call(self._engine.api.containers, all=True)}


def _cached(image: dict[str, Any]) -> CachedImage:
    return CachedImage(str(image["Id"]), tuple(image.get("RepoTags") or ()), int(image.get("Size") or 0))
