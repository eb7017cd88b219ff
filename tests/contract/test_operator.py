"""What an operator allows and lists for docker."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conveyor_runtime.errors import ConfigError, TerminalError
from conveyor_runtime.orchestra import BackendSettings, HostMount
from conveyor_runtime.orchestra.docker import DockerBackend
from conveyor_runtime.testing import Place
from conveyor_runtime.testing.place import logs, wait

pytestmark = pytest.mark.docker


@pytest.fixture
def networks(docker_engine: Any) -> Iterator[tuple[str, str]]:
    names = (f"cv-test-{secrets.token_hex(4)}", f"cv-test-{secrets.token_hex(4)}")
    for name in names:
        docker_engine.create_network(name)
    yield names
    for name in names:
        docker_engine.remove_network(name)


async def test_containers_are_spread_over_the_networks(
    busybox: str, docker_engine: Any, networks: tuple[str, str]
) -> None:
    async def open_backend() -> DockerBackend:
        return await DockerBackend.open(BackendSettings(networks=networks))

    async with Place(open_backend, image=busybox) as place:
        sandbox = await place.sandboxes().start_sandbox(place.ns(), place.task(), place.owner())
        # Another process counts what the first one started.
        other = await place.open()
        container = await other.run(place.ns(), place.sh("sleep 100"), place.owner())
        found = [docker_engine.inspect_container(it.id)["NetworkSettings"]["Networks"] for it in (sandbox, container)]
        assert sorted(name for names in found for name in names) == sorted(networks)
        own = await other.run(place.ns(), place.sh("true", id="own", network="bridge"), place.owner())
        assert list(docker_engine.inspect_container(own.id)["NetworkSettings"]["Networks"]) == ["bridge"]


async def test_a_network_that_is_not_there_is_said_at_the_start(docker_engine: Any) -> None:
    with pytest.raises(ConfigError, match="no network 'no-such'"):
        await DockerBackend.open(BackendSettings(networks=("no-such",)))


async def test_the_machines_own_network_is_nobodys(busybox: str, docker_engine: Any, docker_place: Place) -> None:
    identity = docker_engine.inspect_network("host")["Id"]
    for network in ("host", identity, identity[:12]):
        with pytest.raises(TerminalError, match="network"):
            await docker_place.backend.run(
                docker_place.ns(), docker_place.sh("true", network=network), docker_place.owner()
            )
        with pytest.raises(ConfigError, match="the machine's own"):
            await DockerBackend.open(BackendSettings(networks=(network,)))


async def test_host_paths_that_are_listed(busybox: str, tmp_path: Path) -> None:
    async def open_backend() -> DockerBackend:
        return await DockerBackend.open(BackendSettings(host_paths=(tmp_path,)))

    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "file").write_text("from the host")
    async with Place(open_backend, image=busybox) as place:
        mounts = (HostMount(f"{tmp_path}/tool", "/tool"),)
        container = await place.backend.run(
            place.ns(), place.sh("cat /tool/file; touch /tool/x", host_mounts=mounts), place.owner()
        )
        assert (await wait(container)).exit_code != 0
        said = await logs(container)
        assert (said.stdout, b"Read-only" in said.stderr) == (b"from the host", True)
        with pytest.raises(TerminalError, match="not among"):
            other = place.sh("true", id="other", host_mounts=(HostMount("/etc", "/tool"),))
            await place.backend.run(place.ns(), other, place.owner())
