"""Where the sandbox of a run is, and how its steps meet there."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field, ValidationError

from conveyor_runtime.errors import Gone, TerminalError
from conveyor_runtime.models import Model, Resource
from conveyor_runtime.orchestra import Backend, ExecTag, NamespaceInfo, Owner, Sandbox, namespace, sandboxes_of
from conveyor_runtime.reconcile import RunContext

__all__ = [
    "CHECKOUT",
    "SANDBOX",
    "ContainerRef",
    "checkout_namespace",
    "checkouts",
    "close_checkouts",
    "enter",
    "owner_of",
    "run_namespace",
    "tag_of",
]

SANDBOX = "sandbox"
"""Task id of a run's sandbox. Which one it is follows from the run alone: no message can point a step elsewhere."""
CHECKOUT = "checkout"


class ContainerRef(Model):
    """What container-start reported, as later steps find it in the resource's metadata."""

    container_id: str = Field(default="", alias="containerID")
    backend: str | None = None
    node: str | None = None
    image: str | None = None
    digest: str = ""
    workspace: str = ""

    @classmethod
    def of(cls, resource: Resource[Any]) -> ContainerRef | None:
        """None if container-start has not reported; TerminalError if what is there cannot be its report."""
        text = resource.metadata.get("driverresults.container-start")
        if not text:
            return None
        try:
            result = json.loads(text)
            data = result["data"]
            return cls.model_validate(json.loads(data) if isinstance(data, str) else data or {})
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise TerminalError(f"the result of container-start cannot be read: {error}") from error

    def backend_in(self, context: RunContext) -> Backend:
        """The backend it names, in this process. Raises TerminalError if it is not served here."""
        return context.orchestra.by_node(self.node) if self.node else context.orchestra.pick(self.backend)


def run_namespace(context: RunContext) -> str:
    """The namespace of everything the run has in its sandbox's backend."""
    return namespace(context.installation, context.run_id)


def checkout_namespace(context: RunContext) -> str:
    """The namespace of what this attempt of git-cloner does on the worker's own machine: no other attempt has it, so
    a worker that does not know yet that it was taken over closes nothing but its own."""
    return f"{_checkout_prefix(context)}_{context.attempt}_{context.takeover}"


async def checkouts(context: RunContext) -> list[NamespaceInfo]:
    """What git-cloner has left on this machine for the run, whichever attempt it was."""
    prefix = _checkout_prefix(context)
    found = await context.orchestra.host.namespaces(context.installation)
    return [info for info in found if info.run_id == context.run_id and info.ns.startswith(prefix)]


async def close_checkouts(context: RunContext) -> None:
    """End and remove all of it, half-removed ones too."""
    host, grace = context.orchestra.host, context.settings.kill_grace
    for info in await checkouts(context):
        await host.close_namespace(info.ns, grace=grace)
    await host.close_namespace(_checkout_prefix(context), grace=grace)


def _checkout_prefix(context: RunContext) -> str:
    return f"{run_namespace(context)}_git"


def owner_of(context: RunContext) -> Owner:
    """Whose things are made now."""
    return Owner(
        context.installation,
        context.run_id,
        context.step,
        context.attempt,
        context.takeover,
        epoch=context.epoch,
    )


def tag_of(context: RunContext) -> ExecTag:
    """Which attempt an exec works for."""
    return ExecTag(context.run_id, context.step, context.attempt, context.takeover)


async def enter(payload: Resource[Any], context: RunContext) -> Sandbox:
    """The sandbox of the run, after ending what earlier attempts of this step left running in it.

    Raises TerminalError if there is none: nothing this step does again brings it back.
    """
    ref = ContainerRef.of(payload)
    if ref is None:
        raise TerminalError("there is no sandbox: a container-start step must come before this one")
    try:
        sandbox = await sandboxes_of(ref.backend_in(context)).get_sandbox(run_namespace(context), SANDBOX)
        if context.attempt > 1 or context.takeover > 0:
            before = (context.attempt, context.takeover)
            await sandbox.end_execs(context.step, before, grace=context.settings.kill_grace)
    except Gone as error:
        raise TerminalError(f"the sandbox of this run is gone: {error}") from error
    return sandbox
