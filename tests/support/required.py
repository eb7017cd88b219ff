"""What a test run must find on its machine: the words of CONVEYOR_REQUIRE, separated by commas.

Without a word, the tests of that part are skipped where it is missing; with it, the run fails.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Mapping

import pytest

VARIABLE = "CONVEYOR_REQUIRE"


def _docker() -> bool:
    from tests.support.environment import docker_answers  # it asks here which words there are

    return docker_answers() and shutil.which("busybox") is not None


def _mount() -> bool:
    from tests.support.disk import can_mount  # it asks here what is required

    return can_mount()


def _program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name) is not None


#: Each word, and what says whether its part is here.
PARTS: Mapping[str, Callable[[], bool]] = {
    "docker": _docker,
    "go": _program("go"),
    "qemu": _program(f"qemu-system-{platform.machine()}"),
    "mount": _mount,
}


class UnknownPartError(Exception):
    """CONVEYOR_REQUIRE holds a word that names no part: a requirement that would silently be none."""


def required() -> list[str]:
    """The parts that are required. Raises UnknownPartError."""
    words = [word.strip().casefold() for word in os.environ.get(VARIABLE, "").split(",") if word.strip()]
    if unknown := [word for word in words if word not in PARTS]:
        raise UnknownPartError(f"{VARIABLE} names {', '.join(unknown)}; it knows {', '.join(PARTS)}")
    return words


def absent() -> list[str]:
    """The required parts that are not here. Raises UnknownPartError."""
    return [word for word in required() if not PARTS[word]()]


def missing(what: str, reason: str) -> None:
    """Skip, or fail where this part is required."""
    if what in required():
        pytest.fail(f"{what} is required: {reason}")
    pytest.skip(f"no {what}: {reason}")
