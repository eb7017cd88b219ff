"""The cases of what every backend has, and of what only some can do with containers and volumes."""

# ruff: noqa: F403 - collecting them is what this is for

from conveyor_runtime.testing.containers import *
from conveyor_runtime.testing.endings import *
from conveyor_runtime.testing.extras import *
from conveyor_runtime.testing.namespaces import *
from conveyor_runtime.testing.outputs import *
from conveyor_runtime.testing.volumes import *
from conveyor_runtime.testing.wishes import *
