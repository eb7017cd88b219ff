"""Pipelines, as Conveyor's clients know them: a view of the resources of the built-in type `pipeline`."""

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
    paginate,
    revision_header,
    same_as_path,
)
from conveyor_runtime.api.documents import Document, parse_draft
from conveyor_runtime.api.openapi import takes
from conveyor_runtime.api.resources import Force, remove
from conveyor_runtime.api.shapes import Deleting, PipelineDraft, PipelineView, WrittenPipeline
from conveyor_runtime.engine import Accepted, Draft
from conveyor_runtime.engine.validation import PIPELINE
from conveyor_runtime.errors import InvalidInput, NotFound, Problem
from conveyor_runtime.models import NAME_RULE, is_name

router = APIRouter(tags=["pipelines"])


def _draft(document: dict[str, Any]) -> Draft:
    name = document.get("name")
    if not isinstance(name, str) or not is_name(name):
        raise InvalidInput(f"name: must be {NAME_RULE}", [Problem("/name", f"must be {NAME_RULE}")])
    # Parsed here although the intake parses again: there the pointers begin at the spec, and here it is the body.
    spec = parse_draft(PipelineDraft, document, "the pipeline", WrittenPipeline).with_ids()
    return Draft(PIPELINE, name, spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"name"}))


def _written(services: Services, accepted: Accepted, response: Response) -> WrittenPipeline:
    response.headers.update(revision_header(accepted.revision))
    view = present.pipeline_view(accepted.record)
    known = services.state.view.drivers()
    waiting = [step for step in (*view.steps, *(view.finally_ or ())) if step.driver not in known]
    return WrittenPipeline(
        **view.__dict__,
        runid=accepted.run_id,
        warnings=[f"driver {it.driver} has never registered; step {it.id} will wait for it" for it in waiting],
    )


@router.post("/pipelines", status_code=201, **takes(PipelineDraft))
async def write(document: Document, services: ServicesDep, response: Response) -> WrittenPipeline:
    """Create a pipeline; an existing name makes a new revision, as Conveyor does. Runs under way keep theirs."""
    return _written(services, await services.intake.update(_draft(document), create_missing=True), response)


@router.get("/pipelines", dependencies=[Current])
async def list_all(
    services: ServicesDep, limit: Annotated[int, Query(ge=1, le=500)] = 100, cursor: str = ""
) -> Page[PipelineView]:
    """All pipelines by name."""
    rest = (found.record for found in services.state.view.resources(PIPELINE) if found.record.name > cursor)
    records, next_cursor = paginate(rest, limit, lambda record: record.name)
    return Page(items=[present.pipeline_view(record) for record in records], next_cursor=next_cursor)


@router.get("/pipelines/{name}")
async def read(name: ObjectName, services: ServicesDep) -> PipelineView:
    """A pipeline."""
    found = await services.state.resource(PIPELINE, name)
    if found is None:
        raise NotFound(f"there is no pipeline named {name}")
    return present.pipeline_view(found.record)


@router.put("/pipelines/{name}", **takes(PipelineDraft))
async def update(name: ObjectName, document: Document, services: ServicesDep, response: Response) -> WrittenPipeline:
    """Replace a pipeline. Runs under way keep the one they started with."""
    return _written(services, await services.intake.update(_draft(same_as_path(document, name=name))), response)


@router.delete("/pipelines/{name}", status_code=204, response_class=Response, responses={202: {"model": Deleting}})
async def delete(name: ObjectName, services: ServicesDep, force: Force = False) -> Response:
    """Delete a pipeline: 204 when it is gone, 202 while drivers that listen to pipelines clean up; 409 when used."""
    return await remove(services, PIPELINE, name, force)
