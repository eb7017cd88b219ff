"""Which backends there are, and which of them a process has."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from conveyor_runtime.errors import BackendUnavailable, ConfigError, TerminalError
from conveyor_runtime.orchestra import Backend, Orchestra
from conveyor_runtime.orchestra.registry import BUILT_IN, BackendSettings, Factory, Registry


class Place:
    """As much of a backend as the registry looks at."""

    def __init__(self, name: str) -> None:
        self.name, self.node, self.closed = name, f"{name}-here", False

    async def close(self) -> None:
        self.closed = True


def opens(name: str) -> Factory:
    async def factory(settings: BackendSettings) -> Backend:
        return cast(Backend, Place(name))

    return factory


async def fails(settings: BackendSettings) -> Backend:
    raise BackendUnavailable("nobody answers")


BOTH = Registry([("docker", opens("docker")), ("native", opens("native"))])
NATIVE = Registry([("docker", fails), ("native", opens("native"))])


def test_a_name_that_comes_twice() -> None:
    with pytest.raises(ConfigError, match="twice"):
        Registry([("a", fails), ("b", fails), ("a", fails)])


async def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="docker, native"):
        await BUILT_IN.open("vm", BackendSettings())
    with pytest.raises(ConfigError, match="docker, native"):
        await Orchestra.open("vm", registry=BOTH)


@pytest.mark.parametrize(
    ("registry", "choice", "nodes", "places"),
    [
        (BOTH, "auto", ["docker-here", "native-here"], 2),
        (BOTH, "docker", ["docker-here"], 2),
        (BOTH, "native", ["native-here"], 1),
        (NATIVE, "auto", ["native-here"], 1),
    ],
)
async def test_choices(registry: Registry, choice: str, nodes: list[str], places: int) -> None:
    orchestra = await Orchestra.open(choice, registry=registry)
    assert orchestra.nodes == nodes
    assert orchestra.default.node == nodes[0]
    assert orchestra.pick().node == orchestra.pick("").node == nodes[0]
    assert orchestra.host.name == "native"
    assert len(orchestra.backends) == places
    for node in nodes:
        assert orchestra.by_node(node).node == node
    await orchestra.close()
    assert all(cast(Any, backend).closed for backend in orchestra.backends)


async def test_what_is_not_served_here() -> None:
    orchestra = await Orchestra.open("docker", registry=BOTH)
    with pytest.raises(TerminalError, match="only docker"):
        orchestra.pick("native")
    with pytest.raises(TerminalError, match="docker-here"):
        orchestra.by_node("native-here")


async def test_docker_that_was_asked_for_must_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(BackendUnavailable):
        await Orchestra.open("docker", native_root=tmp_path / "native")
    orchestra = await Orchestra.open("auto", native_root=tmp_path / "native")
    assert [backend.name for backend in orchestra.backends] == ["native"]
    await orchestra.close()
