"""The SDK and the worker: an event comes in, user code reconciles it, the outcome goes out.

The life of one delivery is `dispatch.py`, top to bottom. User code meets this room only through `Driver`,
`DriverLogger` and `RunContext`; processes are built from `DriverManager`.
"""

from conveyor_runtime.reconcile.context import RunContext
from conveyor_runtime.reconcile.driver import Driver, driver
from conveyor_runtime.reconcile.loader import installed_drivers, load_driver
from conveyor_runtime.reconcile.logger import DriverLogger
from conveyor_runtime.reconcile.manager import DriverManager
from conveyor_runtime.reconcile.rate import RateLimit

__all__ = [
    "Driver",
    "DriverLogger",
    "DriverManager",
    "RateLimit",
    "RunContext",
    "driver",
    "installed_drivers",
    "load_driver",
]
