"""The mock backend, for tests of what stands on backends: containers are coroutines, results and faults are scripted.

    world = World({"build": says(b"compiling\n", code=2), "deploy": deploy})
    world.fail("prepare", BackendUnavailable("the registry is down"), times=2)
    backend = MockBackend(world)

Time is the event loop's, so that a test with virtual time waits for nothing. Several backends may share one world, as
several processes share a Docker engine.
"""

from conveyor_runtime.orchestra.base import Backend
from conveyor_runtime.orchestra.mock.backend import MockBackend
from conveyor_runtime.orchestra.mock.process import Killed, Process, Program, says
from conveyor_runtime.orchestra.mock.world import World
from conveyor_runtime.orchestra.registry import BackendSettings

__all__ = ["Killed", "MockBackend", "Process", "Program", "World", "open_backend", "says"]


async def open_backend(settings: BackendSettings) -> Backend:
    """For the registry: every task succeeds at once and says nothing."""
    return MockBackend(World())
