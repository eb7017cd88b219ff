"""Pulling from a real registry: credentials, policies, digests, progress, and registries that are down."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conveyor_runtime.config import Credentials, ImageSettings
from conveyor_runtime.errors import BackendUnavailable, ImageNotFound
from conveyor_runtime.orchestra import BackendSettings, Owner, Prepared, PullPolicy, Task
from conveyor_runtime.orchestra.docker import DockerBackend
from tests.support.registry import PASSWORD, USER, free_port, registry, stranger

pytestmark = pytest.mark.docker


@dataclass
class Shop:
    """A registry with one image in it."""

    host: str
    image: str
    folder: Path
    port: int


@pytest.fixture(scope="module")
def shop(docker_engine: Any, busybox: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder, port = tmp_path_factory.mktemp("registry"), free_port()
    with registry(folder, port) as host:
        name = f"{host}/team/tools"
        docker_engine.tag(busybox, name, "1")
        auth = {"username": USER, "password": PASSWORD}
        answers = list(docker_engine.push(name, "1", stream=True, decode=True, auth_config=auth))
        assert not [answer for answer in answers if "error" in answer]
        docker_engine.remove_image(f"{name}:1")
        yield Shop(host, f"{name}:1", folder, port)


@pytest.fixture(autouse=True)
def without(shop: Shop, docker_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The engine does not have it, and the docker command's configuration is empty; yields its directory."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    yield tmp_path
    for image in docker_engine.images(shop.image):
        docker_engine.remove_image(shop.image)
        assert image


def settings(host: str = "", user: str = USER, password: str = PASSWORD, **more: Any) -> BackendSettings:
    given = {host: Credentials(user, password)} if host else {}
    return BackendSettings(images=ImageSettings(credentials=given, **more))


@pytest.fixture
async def opened() -> AsyncIterator[Any]:
    backends = []

    async def open_backend(found: BackendSettings) -> DockerBackend:
        backends.append(await DockerBackend.open(found))
        return backends[-1]

    yield open_backend
    for backend in backends:
        await backend.close()


class Lines(list[str]):
    async def __call__(self, line: str) -> None:
        self.append(line)


async def test_with_credentials_that_were_given(shop: Shop, opened: Any, docker_engine: Any) -> None:
    backend, lines = await opened(settings(shop.host)), Lines()
    with await backend.prepare(Task("x", shop.image), lines) as prepared:
        assert prepared.digest.startswith("sha256:")
        assert docker_engine.inspect_image(shop.image)["RepoDigests"] == [f"{shop.host}/team/tools@{prepared.digest}"]
    assert lines[0] == f"pulling {shop.image}"
    assert any("Download" in line or "Pull" in line or "Already exists" in line for line in lines[1:])
    owner = Owner("pulls", "run", "start", 1, 0)
    try:
        container = await backend.run("cv-pulls-run", Task("x", shop.image, ("true",)), owner)
        assert (await container.wait()).status == "success"
        sandbox = await backend.start_sandbox("cv-pulls-run", Task("sandbox", shop.image), owner)
        for found in (container, sandbox):
            labels = docker_engine.inspect_container(found.id)["Config"]["Labels"]
            assert labels["conveyor.digest"] == prepared.digest
    finally:
        await backend.close_namespace("cv-pulls-run")


async def test_with_the_docker_commands_credentials(shop: Shop, opened: Any, without: Path) -> None:
    backend = await opened(settings())
    with pytest.raises(ImageNotFound):
        await backend.prepare(Task("x", shop.image), Lines())
    token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (without / "config.json").write_text(json.dumps({"auths": {shop.host: {"auth": token}}}))
    with await backend.prepare(Task("x", shop.image), Lines()):
        pass


@pytest.mark.parametrize("password", ["wrong", ""])
async def test_with_a_wrong_password(shop: Shop, opened: Any, password: str) -> None:
    backend, lines = await opened(settings(shop.host, password=password)), Lines()
    with pytest.raises(ImageNotFound, match=r"unauthorized|authentication|denied|basic auth"):
        await backend.prepare(Task("x", shop.image), lines)
    assert not any("again" in line for line in lines)


async def test_credentials_are_for_their_own_registry(shop: Shop, opened: Any, without: Path) -> None:
    token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (without / "config.json").write_text(json.dumps({"auths": {shop.host: {"auth": token}}}))
    with stranger() as (host, offered):
        for found in (settings(shop.host), settings()):
            with pytest.raises((ImageNotFound, BackendUnavailable)):
                await (await opened(found)).prepare(Task("x", f"{host}/team/tools:1"), Lines())
        assert offered
        assert set(offered) == {None}


async def test_what_is_not_there(shop: Shop, opened: Any) -> None:
    backend = await opened(settings(shop.host))
    for image in (f"{shop.host}/team/nothing:1", f"{shop.host}/team/tools:nothing"):
        with pytest.raises(ImageNotFound):
            await backend.prepare(Task("x", image), Lines())


async def test_policies(shop: Shop, opened: Any) -> None:
    backend = await opened(settings(shop.host))
    with pytest.raises(ImageNotFound, match="never"):
        await backend.prepare(Task("x", shop.image, pull="never"), Lines())
    policies: tuple[tuple[PullPolicy, int], ...] = (
        ("if-not-present", 1),
        ("if-not-present", 0),
        ("never", 0),
        ("always", 1),
    )
    for policy, pulls in policies:
        lines = Lines()
        with await backend.prepare(Task("x", shop.image, pull=policy), lines):
            pass
        assert [line for line in lines if line.startswith("pulling")] == [f"pulling {shop.image}"] * pulls


async def test_twenty_who_want_it_pull_once(shop: Shop, opened: Any) -> None:
    backend = await opened(settings(shop.host))
    lines = [Lines() for _ in range(20)]
    asking = [asyncio.create_task(backend.prepare(Task("x", shop.image, pull="always"), one)) for one in lines]
    await asyncio.sleep(0)
    asking[0].cancel()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert len({outcome.digest for outcome in outcomes if isinstance(outcome, Prepared)}) == 1
    assert sum(isinstance(outcome, Prepared) for outcome in outcomes) == 19
    assert sum(line.startswith("pulling") for line in lines[5]) == 1


async def test_a_registry_that_comes_back_is_asked_again(shop: Shop, opened: Any, tmp_path: Path) -> None:
    port = free_port()
    backend, lines = await opened(settings(f"127.0.0.1:{port}", pull_retries=20)), Lines()
    image = f"127.0.0.1:{port}/team/tools:1"
    asking = asyncio.create_task(backend.prepare(Task("x", image), lines))
    async with asyncio.timeout(60):
        while not any("trying again" in line for line in lines):
            await asyncio.sleep(0.05)
        with registry(shop.folder, port):
            (await asking).close()
    await backend._engine.call(backend._engine.api.remove_image, image)


async def test_a_registry_that_stays_down(opened: Any) -> None:
    backend, lines = await opened(settings(pull_retries=1)), Lines()
    with pytest.raises(BackendUnavailable):
        await backend.prepare(Task("x", f"127.0.0.1:{free_port()}/team/tools:1"), lines)
    assert sum("trying again" in line for line in lines) == 1


async def test_room_is_made_for_what_is_used(shop: Shop, opened: Any, docker_engine: Any) -> None:
    others = [image for listed in docker_engine.images() for image in listed.get("RepoTags") or ()]
    exempt = tuple(image for image in others if image != shop.image and "none" not in image)
    backend = await opened(settings(shop.host, cache_bytes=1, cache_exempt=exempt, removals_per_second=50))
    prepared = await backend.prepare(Task("x", shop.image), Lines())
    await asyncio.sleep(0.3)
    assert docker_engine.images(shop.image)
    assert prepared.digest
