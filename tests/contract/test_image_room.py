"""Room that is made for images, on a real engine; the cache's own rules are in `tests/unit`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conveyor_runtime.config import ImageSettings
from conveyor_runtime.orchestra import BackendSettings, Task
from conveyor_runtime.orchestra.docker import DockerBackend
from conveyor_runtime.testing import Place
from conveyor_runtime.testing.place import quiet
from tests.contract.conftest import until

pytestmark = pytest.mark.docker


class Shelf:
    """Images that only these tests look at, on an engine that has others'."""

    def __init__(self, api: Any, base: str) -> None:
        self._api, self._base = api, base
        self.prefix = f"conveyor-test/room-{secrets.token_hex(4)}"

    def make(self, *names: str) -> str:
        """A new image with a shell; its first name."""
        container = self._api.create_container(self._base, ["true"])
        try:
            first, *others = (f"{self.prefix}-{name}" for name in names)
            self._api.commit(container, first, "1")
            for other in others:
                self._api.tag(f"{first}:1", other, "1")
            return f"{first}:1"
        finally:
            self._api.remove_container(container)

    def names(self) -> list[str]:
        """What is left."""
        found = self.listed()
        return sorted(name.removeprefix(f"{self.prefix}-") for image in found for name in image["RepoTags"])

    def listed(self) -> list[dict[str, Any]]:
        return list(self._api.images(filters={"reference": f"{self.prefix}-*"}))


@pytest.fixture
def shelf(docker_engine: Any, busybox: str) -> Any:
    shelf = Shelf(docker_engine, busybox)
    yield shelf
    for image in shelf.listed():
        docker_engine.remove_image(image["Id"], force=True)


@pytest.fixture
async def place(shelf: Shelf, busybox: str) -> AsyncIterator[Place]:
    """One whose cache holds next to nothing and sees this shelf only."""

    async def open_backend() -> DockerBackend:
        backend = await DockerBackend.open(BackendSettings(images=ImageSettings(cache_bytes=1, removals_per_second=50)))
        backend._engine.api.images = shelf.listed
        return backend

    async with Place(open_backend, image=busybox) as place:
        yield place


async def use(place: Place, image: str) -> None:
    (await place.backend.prepare(Task("x", image, pull="never"), quiet)).close()


def cleaners() -> int:
    return sum("Images._clean" in repr(task.get_coro()) for task in asyncio.all_tasks())


async def test_one_cleaner_however_many_prepare_at_once(shelf: Shelf, busybox: str) -> None:
    backend = await DockerBackend.open(BackendSettings(images=ImageSettings(cache_bytes=1 << 50)))
    task = Task("x", shelf.make("a"), pull="never")
    for prepared in await asyncio.gather(*(backend.prepare(task, quiet) for _ in range(5))):
        prepared.close()
    assert cleaners() == 1
    await backend.close()
    assert cleaners() == 0


async def test_an_image_with_names_in_two_repositories_goes(place: Place, shelf: Shelf) -> None:
    await use(place, shelf.make("a", "b"))
    await until(lambda: shelf.names() == [])


async def test_what_a_container_is_made_of_stays_with_all_its_names(place: Place, shelf: Shelf) -> None:
    image = shelf.make("sandbox", "too")
    with await place.backend.prepare(place.task(image=image), quiet):
        await place.sandboxes().start_sandbox(place.ns(), place.task(image=image), place.owner())
    image = shelf.make("container", "two")
    with await place.backend.prepare(place.sh("true", id="other", image=image), quiet):
        await (await place.backend.run(place.ns(), place.sh("true", id="other", image=image), place.owner())).wait()
    await use(place, shelf.make("unused"))  # the youngest goes, and only that one
    await until(lambda: "unused:1" not in shelf.names())
    assert shelf.names() == ["container:1", "sandbox:1", "too:1", "two:1"]
    await place.backend.close_namespace(place.ns(), grace=0)
    await use(place, shelf.make("unused"))
    await until(lambda: shelf.names() == [])


async def test_a_name_that_is_exempt_is_seen_when_it_is_given_late(
    shelf: Shelf, docker_engine: Any, busybox: str
) -> None:
    settings = ImageSettings(cache_bytes=1, cache_exempt=(f"{shelf.prefix}-kept:1",), removals_per_second=50)
    image, backend = shelf.make("a"), await DockerBackend.open(BackendSettings(images=settings))
    backend._engine.api.images = shelf.listed
    with await backend.prepare(Task("x", image, pull="never"), quiet):
        docker_engine.tag(image, f"{shelf.prefix}-kept", "1")
    other = shelf.make("unused")
    (await backend.prepare(Task("x", other, pull="never"), quiet)).close()
    await until(lambda: "unused:1" not in shelf.names())
    assert shelf.names() == ["a:1", "kept:1"]
    await backend.close()
