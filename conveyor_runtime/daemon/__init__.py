"""The composition root: the only room that knows every other. It builds processes and sees to their end.

`control` is the API with the engine, `worker` one driver process, `up` everything in one process tree.
"""

from conveyor_runtime.daemon.run import run_driver, run_serve, run_up
from conveyor_runtime.daemon.up import Running, UpSettings, up

__all__ = ["Running", "UpSettings", "run_driver", "run_serve", "run_up", "up"]
