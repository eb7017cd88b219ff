"""Containers and volumes, on every backend."""

import pytest

from conveyor_runtime.testing import Place
from conveyor_runtime.testing.container_cases import *  # noqa: F403


@pytest.fixture(params=["mock", "toy", "native", pytest.param("docker", marks=pytest.mark.docker)])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found
