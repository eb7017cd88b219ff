"""The life of runs: accepted, dispatched, taken over, ended. Every rule is in `planner`, which is pure.

The order is always: commit the transition, then publish what it names; a crash between the two is closed by the sweep.
Any number of engines may work on one bus: each transition is one compare-and-set, so no engine needs to lead.
"""

from conveyor_runtime.engine.describe import describe_run
from conveyor_runtime.engine.dispatcher import Dispatcher
from conveyor_runtime.engine.drafts import Draft
from conveyor_runtime.engine.engine import Engine
from conveyor_runtime.engine.intake import Accepted, Deleted, Intake

__all__ = ["Accepted", "Deleted", "Dispatcher", "Draft", "Engine", "Intake", "describe_run"]
