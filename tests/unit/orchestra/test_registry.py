"""Which backends there are, and which of them a process has."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, cast

import pytest

from conveyor_runtime.errors import BackendUnavailable, ConfigError, TerminalError
from conveyor_runtime.orchestra import Backend, Orchestra
from conveyor_runtime.orchestra.registry import BUILT_IN, ENTRY_POINTS, BackendSettings, Factory, Registry, installed


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
    with pytest.raises(ConfigError, match="docker, native, qemu"):
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
        (BOTH, "native,docker", ["native-here", "docker-here"], 2),
        (BOTH, "docker, native", ["docker-here", "native-here"], 2),
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


def test_the_allow_list() -> None:
    assert BOTH.only(["docker"]).names == ["docker"]
    with pytest.raises(ConfigError, match="docker, native"):
        BOTH.only(["docker", "vm"])
    with pytest.raises(ConfigError, match="twice"):
        BOTH.only(["docker", "docker"])


async def test_a_chosen_backend_that_fails_closes_the_others() -> None:
    opened: list[Place] = []

    async def factory(settings: BackendSettings) -> Backend:
        opened.append(Place("native"))
        return cast(Backend, opened[-1])

    with pytest.raises(BackendUnavailable):
        await Orchestra.open("native,docker", registry=Registry([("docker", fails), ("native", factory)]))
    assert [place.closed for place in opened] == [True]


async def toy(settings: BackendSettings) -> Backend:
    """The factory of a third party's backend."""
    return cast(Backend, Place(settings.options["name"]))


async def test_a_third_partys_backend_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [EntryPoint("toy", f"{__name__}:toy", ENTRY_POINTS), EntryPoint("gone", "no_such_module:x", ENTRY_POINTS)]
    monkeypatch.setattr("conveyor_runtime.orchestra.registry.entry_points", lambda group: found)
    assert installed().names == ["docker", "gone", "native", "qemu", "toy"]
    assert (await installed().open("toy", BackendSettings(options={"name": "ours"}))).name == "ours"
    with pytest.raises(ConfigError, match="'gone' cannot be loaded from no_such_module:x"):
        await installed().open("gone", BackendSettings())
    found.append(EntryPoint("docker", f"{__name__}:toy", ENTRY_POINTS))
    with pytest.raises(ConfigError, match="twice"):
        installed()


async def test_what_is_not_served_here() -> None:
    orchestra = await Orchestra.open("docker", registry=BOTH)
    with pytest.raises(TerminalError, match="only docker"):
        orchestra.pick("native")
    with pytest.raises(TerminalError, match="docker-here"):
        orchestra.by_node("native-here")


async def test_docker_that_was_asked_for_must_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(BackendUnavailable):
        await Orchestra.open("docker", BackendSettings(native_root=tmp_path / "native"))
    orchestra = await Orchestra.open("auto", BackendSettings(native_root=tmp_path / "native"))
    assert [backend.name for backend in orchestra.backends] == ["native"]
    await orchestra.close()
