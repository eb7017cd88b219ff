"""container-start: have the image, start the sandbox that the run's later steps work in."""

from __future__ import annotations

import re

from conveyor_runtime.errors import ImageNotFound, TerminalError
from conveyor_runtime.models import DriverResult, Resource
from conveyor_runtime.orchestra import Limits, Task, sandboxes_of
from conveyor_runtime.reconcile import Driver, DriverLogger, RunContext
from drivers.sandboxes import SANDBOX, ContainerRef, owner_of, run_namespace
from drivers.spec import TYPES, BuildSpec, backend_of


async def reconcile(
    payload: Resource[BuildSpec], event: str, run_id: str, logger: DriverLogger, context: RunContext
) -> DriverResult:
    """Start the sandbox, or find the one that an earlier attempt started."""
    spec = payload.spec
    backend = context.orchestra.pick(spec.backend)
    task = Task(id=SANDBOX, image=spec.image or "", limits=spec.limits.as_limits(), pull=spec.pull, warm=spec.warm)

    async def progress(line: str) -> None:
        logger.info(line)

    try:
        with await backend.prepare(task, progress) as prepared:
            context.ensure_current()
            sandbox = await sandboxes_of(backend).start_sandbox(run_namespace(context), task, owner_of(context))
    except ImageNotFound as error:
        raise TerminalError(str(error)) from error
    # A hash is known by its beginning; what is no hash begins with what all of them have in common.
    where = f"{backend.name} sandbox {sandbox.id[:12] if re.fullmatch('[0-9a-f]{64}', sandbox.id) else sandbox.id}"
    # A backend without images ignores the name of one.
    logger.info(f"started {where} from {spec.image}" if spec.image and prepared.digest else f"started {where}")
    ref = ContainerRef(
        container_id=sandbox.id,
        backend=backend.name,
        node=backend.node,
        image=spec.image,
        digest=prepared.digest,
        workspace=sandbox.workspace,
    )
    return DriverResult(success=True, message=f"{where} is running", data=ref.model_dump(by_alias=True))


def uses(payload: Resource[BuildSpec]) -> Limits:
    """What a build holds of its node: what it may use at most."""
    return payload.spec.limits.as_use()


driver = Driver(
    name="container-start",
    resources=TYPES,
    reconcile=reconcile,
    sandbox=True,
    direct=False,
    backend_of=backend_of,
    uses=uses,
    keeps_warm=True,
)
