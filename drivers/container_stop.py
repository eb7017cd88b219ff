"""container-stop: remove everything the run has on this node."""

from __future__ import annotations

from conveyor_runtime.errors import TerminalError
from conveyor_runtime.models import DriverResult, Resource
from conveyor_runtime.orchestra import Backend
from conveyor_runtime.reconcile import Driver, DriverLogger, RunContext
from drivers.sandboxes import ContainerRef, close_checkouts, run_namespace
from drivers.spec import TYPES, backend_of


async def reconcile(
    payload: Resource, event: str, run_id: str, logger: DriverLogger, context: RunContext
) -> DriverResult:
    """Runs after success, failure, timeout and cancel, so it takes nothing for granted: what is gone is fine."""
    context.ensure_current()
    grace = context.settings.kill_grace
    for backend in _places(payload, context):
        await backend.close_namespace(run_namespace(context), grace=grace)
    await close_checkouts(context)
    logger.info("removed the sandbox and its workspace")
    return DriverResult(success=True, message="nothing of this run is left")


def _places(payload: Resource, context: RunContext) -> list[Backend]:
    """Where container-start says the sandbox is; if it did not get to saying so, wherever it may be."""
    try:
        ref = ContainerRef.of(payload)
        if ref is not None:
            return [ref.backend_in(context)]
    except TerminalError:
        pass
    return context.orchestra.backends


driver = Driver(
    name="container-stop",
    resources=TYPES,
    reconcile=reconcile,
    sandbox=True,
    direct=False,
    backend_of=backend_of,
)
