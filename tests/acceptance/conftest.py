"""`world`: one `conveyor up` for a module of tests, torn down to the last process."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.world import World, clean_environment
from tests.support.docker import busybox, docker_engine

__all__ = ["busybox", "docker_engine"]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small git repository with two commits; its address."""
    path = tmp_path_factory.mktemp("repository")
    environment = clean_environment(GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_NOSYSTEM="1")

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=tester", "-c", "user.email=tester@localhost"]
        subprocess.run(["git", *who, "-C", str(path), *arguments], env=environment, check=True, capture_output=True)

    git("init", "--quiet", "--initial-branch=main")
    (path / "README").write_text("hello from the repository\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    (path / "greet.sh").write_text('echo "greetings, $1"\n')
    git("add", ".")
    git("commit", "--quiet", "-m", "two")
    return f"file://{path}"


def _world(folder: Path, *arguments: str) -> Iterator[World]:
    world = World(folder)
    try:
        world.up(*arguments)
        yield world
    finally:
        world.close()
    world.check_ended()
    assert not world.builds_left()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Everything on the native backend, for all tests of a module."""
    yield from _world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def empty_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The same without drivers: tests start what they need."""
    yield from _world(tmp_path_factory.mktemp("world"), "--drivers", "none")


@pytest.fixture
def own_world(tmp_path: Path) -> Iterator[World]:
    """Nothing started yet, for one test."""
    world = World(tmp_path)
    yield world
    world.close()
    world.check_ended()
