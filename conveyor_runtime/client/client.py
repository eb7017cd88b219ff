"""The client itself: one method per thing one can ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Self

import httpx2

from conveyor_runtime.client.calls import delete, list_all, one, path_of
from conveyor_runtime.client.errors import UnavailableError, UnreachableError
from conveyor_runtime.client.follow import Absence, follow, stored_pages
from conveyor_runtime.client.models import Applied, Deleted, DriverInfo, LoggedLine, Pipeline, ResourceInfo
from conveyor_runtime.client.transport import Transport
from conveyor_runtime.kit.backoff import Backoff
from conveyor_runtime.models import Resource, ResourceDefinition, Run, Status
from conveyor_runtime.models.letter import DeadLetter, Purged, Redriven, WholeDeadLetter

#: A document as one would write it in YAML or JSON.
Document = Mapping[str, Any]


class Client:
    """Speaks to the API at `base_url`; `async with` closes it. Every method raises `ClientError`.

    `timeout` (seconds) bounds each request. Reads are tried again for a moment when the server is away, writes only
    when they certainly never left. Lists see what this client has written.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8080",
        token: str = "",
        timeout: float = 30.0,
        *,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._transport = Transport(base_url, token, timeout, transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    # -- resources -----------------------------------------------------------------------------------------------

    async def apply(self, resource: Document) -> Applied:
        """Create the resource or make it so; what changes nothing makes no run."""
        response = await self._transport.send("POST", "/resources/apply", json=resource)
        return one(Applied, response, created=response.status_code == 201)

    async def create(self, resource: Document) -> Applied:
        """Create the resource. Raises ConflictError if there is one of that type and name."""
        response = await self._transport.send("POST", "/resources", json=resource)
        return one(Applied, response, created=True)

    async def update(self, type: str, name: str, resource: Document) -> ResourceInfo:  # noqa: A002 - the word of the domain
        """Replace the resource; its `run_id` names the run this led to. Raises NotFoundError if there is none."""
        return one(ResourceInfo, await self._transport.send("PUT", path_of("resources", type, name), json=resource))

    async def get_resource(self, type: str, name: str) -> ResourceInfo:  # noqa: A002
        """The resource, with what the drivers of its active or last run reported."""
        return one(ResourceInfo, await self._transport.send("GET", path_of("resources", type, name)))

    async def get_version(self, type: str, name: str, version: int | str) -> Resource:  # noqa: A002
        """The resource as it was at an earlier version."""
        path = path_of("resources", type, name, str(version))
        return one(Resource, await self._transport.send("GET", path))

    async def list_resources(self, type: str | None = None) -> list[ResourceInfo]:  # noqa: A002
        """All resources (of a type), by type and name."""
        return await list_all(self._transport, ResourceInfo, "/resources", {"type": type})

    async def delete_resource(self, type: str, name: str, *, force: bool = False) -> Deleted:  # noqa: A002
        """Delete the resource: gone at once, or once its drivers have cleaned up; by `force` none is asked."""
        return await delete(self._transport, path_of("resources", type, name), name, force=force)

    # -- definitions ---------------------------------------------------------------------------------------------

    async def create_definition(self, definition: Document) -> ResourceDefinition:
        """Create a resource definition. Raises ConflictError if it exists."""
        return one(ResourceDefinition, await self._transport.send("POST", "/resource-definitions", json=definition))

    async def apply_definition(self, definition: Document) -> ResourceDefinition:
        """Create a resource definition or replace it."""
        response = await self._transport.send("POST", "/resource-definitions/apply", json=definition, repeatable=True)
        return one(ResourceDefinition, response)

    async def get_definition(self, name: str) -> ResourceDefinition:
        """A resource definition."""
        return one(ResourceDefinition, await self._transport.send("GET", path_of("resource-definitions", name)))

    async def list_definitions(self) -> list[ResourceDefinition]:
        """All resource definitions by name."""
        return await list_all(self._transport, ResourceDefinition, "/resource-definitions", {})

    async def delete_definition(self, name: str) -> None:
        """Delete a resource definition. Raises ConflictError while there are resources of its type."""
        await self._transport.send("DELETE", path_of("resource-definitions", name))

    # -- pipelines -----------------------------------------------------------------------------------------------

    async def apply_pipeline(self, pipeline: Document) -> Pipeline:
        """Create a pipeline, or make a new revision of it."""
        return one(Pipeline, await self._transport.send("POST", "/pipelines", json=pipeline))

    async def update_pipeline(self, name: str, pipeline: Document) -> Pipeline:
        """Replace a pipeline. Raises NotFoundError if there is none."""
        return one(Pipeline, await self._transport.send("PUT", path_of("pipelines", name), json=pipeline))

    async def get_pipeline(self, name: str) -> Pipeline:
        """A pipeline."""
        return one(Pipeline, await self._transport.send("GET", path_of("pipelines", name)))

    async def list_pipelines(self) -> list[Pipeline]:
        """All pipelines by name."""
        return await list_all(self._transport, Pipeline, "/pipelines", {})

    async def delete_pipeline(self, name: str, *, force: bool = False) -> Deleted:
        """Delete a pipeline; runs under way keep the one they started with. `force` as for resources.

        Raises ConflictError while a resource or definition names it.
        """
        return await delete(self._transport, path_of("pipelines", name), name, force=force)

    # -- runs ----------------------------------------------------------------------------------------------------

    async def get_run(self, run_id: str) -> Run:
        """A run and its steps, with what their drivers reported."""
        return one(Run, await self._transport.send("GET", path_of("runs", run_id)))

    async def list_runs(
        self,
        *,
        status: Status | Sequence[Status] | None = None,
        type: str | None = None,  # noqa: A002
        name: str | None = None,
        pipeline: str | None = None,
        limit: int = 50,
    ) -> list[Run]:
        """The newest `limit` runs that match, newest first, without the data of their steps."""
        wanted = {"status": status, "type": type, "name": name, "pipeline": pipeline}
        return await list_all(self._transport, Run, "/runs", wanted, most=limit)

    async def cancel_run(self, run_id: str, reason: str = "") -> Run:
        """Ask a run to end; the run as it is then. Its `finally` steps still run."""
        path = path_of("runs", run_id, "cancel")
        return one(Run, await self._transport.send("POST", path, json={"reason": reason}, repeatable=True))

    async def rerun(self, run_id: str) -> Run:
        """A new run of a run's resource, as it is now and for the same event.

        Raises NotFoundError if the run or its resource is gone, ConflictError while the resource is being deleted.
        """
        return one(Run, await self._transport.send("POST", path_of("runs", run_id, "rerun")))

    async def wait_run(self, run_id: str, timeout: float | None = None, *, patience: float = 120.0) -> Run:
        """Wait until the run has ended, through restarts of the server; TimeoutError after `timeout` seconds.

        A server that stays away for `patience` seconds ends it with an UnreachableError.
        """
        backoff, absence = Backoff(0.1, 2.0), Absence(patience)
        async with asyncio.timeout(timeout):
            while True:
                try:
                    run = await self.get_run(run_id)
                except (UnreachableError, UnavailableError) as error:
                    await absence.endure(error)
                    continue
                if run.status.terminal:
                    return run
                absence.over()
                await asyncio.sleep(backoff.next())

    # -- logs ----------------------------------------------------------------------------------------------------

    async def logs(self, run_id: str, *, after: int = 0) -> list[LoggedLine]:
        """The lines stored so far, behind id `after`."""
        return [line async for page in self.log_pages(run_id, after=after) for line in page]

    def log_pages(self, run_id: str, *, after: int = 0) -> AsyncGenerator[Sequence[LoggedLine]]:
        """The lines stored so far, behind id `after`, some thousand at a time: a long log need not fit into memory."""
        return stored_pages(self._transport, run_id, after=after)

    def follow_logs(
        self, run_id: str, *, after: int = 0, driver: str = "", patience: float = 120.0
    ) -> AsyncGenerator[LoggedLine]:
        """The lines of a run (of one driver) behind id `after`, live, until the run ends.

        Every line comes once and in order, through restarts of the server too; one that stays away for `patience`
        seconds ends it with an UnreachableError.
        """
        path = path_of("logs", "streams", driver, run_id) if driver else path_of("logs", run_id)
        return follow(self._transport, path, after=after, patience=patience)

    # -- the rest ------------------------------------------------------------------------------------------------

    async def drivers(self) -> list[DriverInfo]:
        """All drivers that ever registered, with their living processes."""
        return await list_all(self._transport, DriverInfo, "/drivers", {})

    async def forget_driver(self, name: str) -> None:
        """Forget a driver that is gone for good. Raises ConflictError while one of its processes lives."""
        await self._transport.send("DELETE", path_of("drivers", name))

    # -- dead letters --------------------------------------------------------------------------------------------

    async def dead_letters(self) -> list[DeadLetter]:
        """What nobody could work on, oldest first."""
        return await list_all(self._transport, DeadLetter, "/dead-letters", {})

    async def dead_letter(self, letter_id: int) -> WholeDeadLetter:
        """A dead letter with its message."""
        return one(WholeDeadLetter, await self._transport.send("GET", path_of("dead-letters", str(letter_id))))

    async def redrive(self, letter_id: int) -> Redriven:
        """Put a dead letter back in play. Raises NotFoundError, and ConflictError while it is not the time for it."""
        return one(Redriven, await self._transport.send("POST", path_of("dead-letters", str(letter_id), "redrive")))

    async def remove_dead_letter(self, letter_id: int) -> None:
        """Remove a dead letter."""
        await self._transport.send("DELETE", path_of("dead-letters", str(letter_id)))

    async def purge_dead_letters(self, older_than: str | None = None) -> int:
        """Remove those older than that (`90s`, `24h`; None = all); how many they were."""
        which = {"all": "true"} if older_than is None else {"older_than": older_than}
        return one(Purged, await self._transport.send("DELETE", "/dead-letters", params=which)).purged

    async def ready(self) -> bool:
        """Whether the server can serve now. Raises UnreachableError if nobody answers."""
        return (await self._transport.send("GET", "/readyz", expect=(503,))).status_code == 200
