"""The mock backend, for tests of what stands on backends: containers are coroutines, results and faults are scripted.

    world = World({"build": says(b"compiling\n", code=2), "deploy": deploy})
    world.fail("prepare", BackendUnavailable("the registry is down"), times=2)
    backend = MockBackend(world)

An exec in a sandbox is a program, too, found by its step: `process.task` is what it was asked to do, and
`process.workspace` the directory where the sandbox's files really are.

It is in no registry: a user who could ask for it by name would have every task succeed with nothing done. Time is the
event loop's, so that a test with virtual time waits for nothing. Several backends may share one world, as
several processes share a Docker engine.
"""

from conveyor_runtime.orchestra.mock.backend import MockBackend
from conveyor_runtime.orchestra.mock.process import Killed, Process, Program, says
from conveyor_runtime.orchestra.mock.world import World

__all__ = ["Killed", "MockBackend", "Process", "Program", "World", "says"]
