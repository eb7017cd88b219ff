"""container-run: a resource that is one container, run to its end inside the run, or kept as a service."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

from conveyor_runtime.errors import Gone, ImageNotFound, TaskFailed, TaskTimedOut, TerminalError
from conveyor_runtime.kit.lines import LineSplitter
from conveyor_runtime.kit.shielded import finish
from conveyor_runtime.models import DriverResult, Resource
from conveyor_runtime.orchestra import Backend, Container, ContainerStatus, Limits, Owner, Stream, namespace
from conveyor_runtime.reconcile import Driver, DriverLogger, RunContext
from drivers.sandboxes import owner_of, run_namespace
from drivers.spec import backend_of
from drivers.task_spec import TaskSpec
from drivers.usage import Usage, watched

TYPES = ("task",)


async def reconcile(
    payload: Resource[TaskSpec], event: str, run_id: str, logger: DriverLogger, context: RunContext
) -> DriverResult:
    """Have it as the resource says."""
    if event == "delete":
        return await _delete(payload, context)
    if payload.spec.is_service:
        return await _serve(payload, logger, context)
    await _close_service(payload, context, logger)  # it may have been one before this update
    if event == "resync":
        return DriverResult(success=True, message="a task that runs to its end has nothing to repair")
    return await _run(payload, logger, context)


async def _run(payload: Resource[TaskSpec], logger: DriverLogger, context: RunContext) -> DriverResult:
    """To its end. Another worker that takes over finds the container and goes on; a new attempt begins anew."""
    spec, ns = payload.spec, run_namespace(context)
    backend = context.orchestra.pick(spec.backend)
    task = spec.as_task(f"task-{context.attempt}", context.settings.kill_grace)
    try:
        container = await _start(backend, ns, spec, task.id, owner_of(context), logger, context)
        async with watched(container) as usage:
            status = await _follow(container, logger)
    except asyncio.CancelledError:
        if not context.abandoned:
            await finish(backend.close_namespace(ns, grace=context.settings.kill_grace))
        raise
    context.ensure_current()  # who stood still while it ended would take it from under another that follows it
    await backend.close_namespace(ns, grace=0)
    return _judged(status, spec, usage)


async def _start(
    backend: Backend,
    ns: str,
    spec: TaskSpec,
    task_id: str,
    owner: Owner,
    logger: DriverLogger,
    context: RunContext,
) -> Container:
    async def progress(line: str) -> None:
        logger.info(line)

    task = spec.as_task(task_id, context.settings.kill_grace)
    try:
        with await backend.prepare(task, progress):
            context.ensure_current()
            return await backend.run(ns, task, owner)
    except ImageNotFound as error:
        raise TerminalError(str(error)) from error


async def _follow(container: Container, logger: DriverLogger) -> ContainerStatus:
    lines: dict[Stream, LineSplitter] = {"stdout": LineSplitter(), "stderr": LineSplitter()}

    async def take(stream: Stream, data: bytes) -> None:
        for line in lines[stream].feed(data):
            await logger.line(line, stream=stream)

    with contextlib.suppress(Gone):  # removed by hand: the status says so
        await container.logs(take)
    for stream, splitter in lines.items():
        for line in splitter.flush():
            await logger.line(line, stream=stream)
    return await container.wait()


def _judged(status: ContainerStatus, spec: TaskSpec, usage: Usage) -> DriverResult:
    code, data = status.exit_code, {**_facts(status), **usage.facts()}
    if status.status == "success":
        return DriverResult(success=True, message="the command succeeded", data=data)
    if status.status == "timeout":
        raise TaskTimedOut(f"the command exceeded its timeout of {spec.timeout:g} s", exit_code=code, data=data)
    if status.reason == "gone":
        raise TerminalError("the container was removed while it ran: how it would have ended nobody knows")
    how = {"oom": "ran out of memory", "signal": "was killed"}.get(status.reason or "", status.status)
    how = "failed" if how == "error" else "was stopped" if how == "cancelled" else how
    again = f" after {status.restarts} restarts" if status.restarts else ""
    raise TaskFailed(f"the command {how} with exit code {code}{again}", exit_code=code, data=data)


async def _serve(payload: Resource[TaskSpec], logger: DriverLogger, context: RunContext) -> DriverResult:
    """There is one container of it, with this spec, and it runs."""
    spec, ns = payload.spec, _service_namespace(payload, context)
    backend = context.orchestra.pick(spec.backend)
    await _close_service(payload, context, logger, but=backend)
    wanted = f"s-{spec.fingerprint()}"
    for other in await _containers(backend, ns, context):
        if other != wanted and await _remove(backend, ns, other, context):
            logger.info(f"removed the container of an earlier spec, {other}")
    running = await _running(backend, ns, wanted)
    if running is None:
        await _remove(backend, ns, wanted, context)
        owner = replace(owner_of(context), step=wanted, resource=_resource_of(payload))
        container = await _start(backend, ns, spec, wanted, owner, logger, context)
        running = await container.status()
        if running.done:
            raise TaskFailed(f"the service ended at once, with exit code {running.exit_code}")
        logger.info(f"started the service {wanted} on {backend.name}")
        message = "the service was started"
    else:
        message = "the service runs"
    return DriverResult(
        success=True, message=message, data={"backend": backend.name, **_facts(running)}, stays=backend.node
    )


async def _delete(payload: Resource[TaskSpec], context: RunContext) -> DriverResult:
    await _close_service(payload, context, None)
    return DriverResult(success=True, message="nothing of this task is left")


async def _close_service(
    payload: Resource[Any], context: RunContext, logger: DriverLogger | None, *, but: Backend | None = None
) -> None:
    """Wherever it is: an update may have moved it to another backend, and then it is to be on that one only."""
    ns = _service_namespace(payload, context)
    for backend in context.orchestra.backends:
        if backend is not but and any(info.ns == ns for info in await backend.namespaces(context.installation)):
            context.ensure_current()
            await backend.close_namespace(ns, grace=context.settings.kill_grace)
            if logger is not None:
                logger.info(f"removed the service from {backend.name}")


async def _containers(backend: Backend, ns: str, context: RunContext) -> list[str]:
    """The containers of a service, by what their owners say: each notes its id as the step."""
    infos = await backend.namespaces(context.installation)
    return sorted({owner.step for info in infos if info.ns == ns for owner in info.owners})


async def _running(backend: Backend, ns: str, task_id: str) -> ContainerStatus | None:
    try:
        status = await (await backend.get(ns, task_id)).status()
    except Gone:
        return None
    return None if status.done else status


async def _remove(backend: Backend, ns: str, task_id: str, context: RunContext) -> bool:
    """Whether there was one. A service's volumes stay: they belong to the resource, not to one spec of it."""
    try:
        container = await backend.get(ns, task_id)
    except Gone:
        return False
    context.ensure_current()
    await container.stop(context.settings.kill_grace)
    await container.cleanup()
    return True


def _service_namespace(payload: Resource[Any], context: RunContext) -> str:
    return namespace(context.installation, f"service-{payload.id}")


def _resource_of(payload: Resource[Any]) -> str:
    return f"{payload.resource}/{payload.name}/{payload.id}"


def _facts(status: ContainerStatus) -> dict[str, Any]:
    ports = [f"{port.address}:{port.host}->{port.container}/{port.protocol}" for port in status.ports]
    return {"status": status.status, "exitCode": status.exit_code, "restarts": status.restarts, "ports": ports}


def uses(payload: Resource[TaskSpec]) -> Limits:
    """What a task that runs to its end holds of its node. A service outlives the run that would hold it: nothing."""
    return Limits() if payload.spec.is_service else payload.spec.limits.as_use()


driver = Driver(
    name="container-run",
    resources=TYPES,
    reconcile=reconcile,
    events="*",
    sandbox=True,
    backend_of=backend_of,
    uses=uses,
    resync_period=60.0,
)
