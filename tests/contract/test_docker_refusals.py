"""What docker refuses before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from conveyor_runtime.errors import TerminalError
from conveyor_runtime.orchestra import Limits, RestartPolicy, checks
from conveyor_runtime.testing import Place

pytestmark = pytest.mark.docker


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": 1.0}, "timeout"),
        ({"stdin": b"x"}, "stdin"),
        ({"restart": RestartPolicy("on-failure", 2)}, "restart policy"),
        ({"command": ("false",)}, "command"),
    ],
)
async def test_what_only_a_container_can_have_a_sandbox_is_refused(
    docker_place: Place, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(TerminalError, match=said):
        await docker_place.sandboxes().start_sandbox(
            docker_place.ns(), docker_place.task(**options), docker_place.owner()
        )
    assert await docker_place.backend.namespaces(docker_place.installation) == []


async def test_a_disk_limit_that_only_fails_when_it_is_tried_is_refused(docker_place: Place) -> None:
    backend: Any = await docker_place.open()
    if backend._engine.limits_disk:
        pytest.skip("this engine keeps disk limits")
    backend._engine.limits_disk = True  # as it would be with xfs, which is mounted here without quotas
    task = docker_place.task(limits=Limits(disk_bytes=1 << 30))
    for start in (backend.run, backend.start_sandbox):
        with pytest.raises(TerminalError, match="disk limit"):
            await start(docker_place.ns(), task, docker_place.owner())
    assert await backend.namespaces(docker_place.installation) == []


async def test_a_wish_that_docker_does_not_know_is_refused(
    docker_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = checks.wishes
    monkeypatch.setattr(checks, "wishes", lambda task: known(task) | {"a new one"})
    backend = await docker_place.open()
    for start in (backend.run, backend.start_sandbox):
        with pytest.raises(TerminalError, match="a new one"):
            await start(docker_place.ns(), docker_place.task(), docker_place.owner())


@pytest.mark.parametrize("network", ["no-such", "container:{}", "../containers/{}/json", "../containers/json"])
async def test_a_network_that_is_none(docker_place: Place, network: str) -> None:
    neighbour = await docker_place.run("sleep 100", id="neighbour")
    with pytest.raises(TerminalError, match="has no network"):
        await docker_place.run("true", id="other", network=network.format(neighbour.id))
