"""The cases of sandboxes, and their fixtures."""

# ruff: noqa: F403 - collecting them is what this is for

from __future__ import annotations

import pytest

from conveyor_runtime.orchestra import Sandbox
from conveyor_runtime.testing.place import Place, SandboxBackend
from conveyor_runtime.testing.sandbox_copies import *
from conveyor_runtime.testing.sandbox_ends import *
from conveyor_runtime.testing.sandbox_execs import *
from conveyor_runtime.testing.sandbox_lifecycle import *
from conveyor_runtime.testing.sandbox_wishes import *


@pytest.fixture
async def backend(place: Place) -> SandboxBackend:
    """The backend under test."""
    return place.sandboxes()


@pytest.fixture
async def sandbox(place: Place, backend: SandboxBackend) -> Sandbox:
    """One that runs."""
    return await backend.start_sandbox(place.ns(), place.task(), place.owner())
