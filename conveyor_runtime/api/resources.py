"""Resources: desired state. What makes a run and what does not is settled in `engine.intake`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from conveyor_runtime.api import present
from conveyor_runtime.api.deps import (
    Current,
    ObjectName,
    Page,
    Services,
    ServicesDep,
    TypeName,
    paginate,
    revision_header,
    same_as_path,
)
from conveyor_runtime.api.documents import Document, parse_draft
from conveyor_runtime.api.openapi import takes
from conveyor_runtime.api.shapes import (
    Applied,
    Deleting,
    OldResource,
    ResourceDraft,
    ResourceView,
    UpdatedResource,
    Written,
)
from conveyor_runtime.api.usage import refuse_used_pipeline
from conveyor_runtime.engine import Draft
from conveyor_runtime.engine.validation import PIPELINE
from conveyor_runtime.errors import InvalidInput, NotFound, Problem
from conveyor_runtime.models import is_name
from conveyor_runtime.models.base import NAME_PATTERN
from conveyor_runtime.store import Versioned

router = APIRouter(tags=["resources"])

Force = Annotated[bool, Query(description="Ask no driver to clean up; a delete under way is cancelled.")]


def draft_of(document: dict[str, Any]) -> Draft:
    """The draft a body holds. Raises InvalidInput."""
    draft = parse_draft(ResourceDraft, document, "the resource", UpdatedResource)
    return Draft(draft.resource, draft.name, draft.spec, draft.pipeline, draft.metadata, draft.priority)


@router.post("/resources", status_code=201, **takes(ResourceDraft))
async def create(document: Document, services: ServicesDep, response: Response) -> Written:
    """Create a resource; its first run begins."""
    accepted = await services.intake.create(draft_of(document))
    record = accepted.record
    response.headers.update(revision_header(accepted.revision))
    response.headers["Location"] = f"/resources/{record.type}/{record.name}"
    return Written(
        name=record.name,
        runid=accepted.run_id,
        message="Resource created successfully",
        version=str(record.revision),
    )


@router.post("/resources/apply", responses={201: {"model": Applied}}, **takes(ResourceDraft))
async def apply(document: Document, services: ServicesDep, response: Response) -> Applied:
    """Create a resource (201), or make it so (200); what changes nothing makes nothing."""
    accepted = await services.intake.update(draft_of(document), create_missing=True)
    response.headers.update(revision_header(accepted.revision))
    response.status_code = 201 if accepted.created else 200
    outcome = (
        "created successfully" if accepted.created else "updated successfully" if accepted.changed else "unchanged"
    )
    return Applied(
        name=accepted.record.name,
        runid=accepted.run_id,
        message=f"Resource {outcome}",
        version=str(accepted.record.revision),
        changed=accepted.changed,
    )


@router.get("/resources", dependencies=[Current])
async def list_all(
    services: ServicesDep,
    type: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,  # noqa: A002 - the name on the wire
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: str = "",
) -> Page[ResourceView]:
    """All resources (of a type), by type and name, without what drivers reported."""
    return _page(services, type, limit, cursor)


@router.get("/resources/{type}", dependencies=[Current])
async def list_type(
    type_: TypeName, services: ServicesDep, limit: Annotated[int, Query(ge=1, le=500)] = 100, cursor: str = ""
) -> Page[ResourceView]:
    """The resources of a type, by name, without what drivers reported."""
    return _page(services, type_, limit, cursor)


@router.get("/resources/{type}/{name}")
async def read(type_: TypeName, name: ObjectName, services: ServicesDep) -> ResourceView:
    """A resource, with what the drivers of its active or last run reported."""
    record = (await _find(services, type_, name)).record
    return ResourceView(**present.resource_fields(record, await present.driver_results(services.state, record)))


@router.get("/resources/{type}/{name}/{version}")
async def read_version(type_: TypeName, name: ObjectName, version: str, services: ServicesDep) -> OldResource:
    """A resource as it was at an earlier revision."""
    record = (await _find(services, type_, name)).record
    if version == str(record.revision):
        resource = record.as_resource()
    else:
        # Only the plain spelling of a number names a version: not 01, not +1, not a digit of another script.
        plain = version.isascii() and version.isdecimal() and len(version) <= 15 and str(int(version)) == version
        found = await services.state.version(record.id, int(version)) if plain else None
        if found is None:
            raise NotFound(f"{type_}/{name} has no version {version[:40]}; its latest is {record.revision}")
        resource = found.record
    return OldResource(**resource.__dict__)


@router.put("/resources/{type}/{name}", **takes(ResourceDraft))
async def update(
    type_: TypeName, name: ObjectName, document: Document, services: ServicesDep, response: Response
) -> UpdatedResource:
    """Replace a resource's spec, pipeline and, if given, metadata; a run begins if that calls for one."""
    accepted = await services.intake.update(draft_of(same_as_path(document, resource=type_, name=name)))
    response.headers.update(revision_header(accepted.revision))
    results = await present.driver_results(services.state, accepted.record)
    return UpdatedResource(**present.resource_fields(accepted.record, results), runid=accepted.run_id)


@router.delete(
    "/resources/{type}/{name}", status_code=204, response_class=Response, responses={202: {"model": Deleting}}
)
async def delete(type_: TypeName, name: ObjectName, services: ServicesDep, force: Force = False) -> Response:
    """Delete a resource: 204 when it is gone, 202 while its drivers clean up (ask again, or watch the run)."""
    return await remove(services, type_, name, force)


async def remove(services: Services, type_: str, name: str, force: bool) -> Response:
    """Delete a resource and say what became of that. Raises Conflict for a pipeline in use."""
    if type_ == PIPELINE:
        await refuse_used_pipeline(services.state, name)
    deleted = await services.intake.delete(type_, name, force=force)
    headers = revision_header(deleted.revision)
    if deleted.gone:
        return Response(status_code=204, headers=headers)
    body = Deleting(name=name, runid=deleted.run_id, message="Resource is being deleted")
    return Response(body.model_dump_json(), 202, headers, "application/json")


async def _find(services: Services, type_: str, name: str) -> Versioned[Any]:
    found = await services.state.resource(type_, name)
    if found is None:
        raise NotFound(f"there is no {type_} named {name}")
    return found


def _page(services: Services, type_: str | None, limit: int, cursor: str) -> Page[ResourceView]:
    after = tuple(cursor.split(".")) if cursor else ()
    if cursor and (len(after) != 2 or not all(map(is_name, after))):
        raise InvalidInput("cursor: not one of ours", [Problem("/query/cursor", "not one of ours")])
    rest = (
        found.record for found in services.state.view.resources(type_) if (found.record.type, found.record.name) > after
    )
    records, next_cursor = paginate(rest, limit, lambda record: f"{record.type}.{record.name}")
    return Page(items=[ResourceView(**present.resource_fields(it)) for it in records], next_cursor=next_cursor)
