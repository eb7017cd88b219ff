"""Resource definitions: the JSON Schema of each type's specs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from conveyor_runtime.api.deps import Current, ObjectName, Page, ServicesDep, revision_header, same_as_path
from conveyor_runtime.api.documents import Document
from conveyor_runtime.api.openapi import takes
from conveyor_runtime.api.shapes import DefinitionView
from conveyor_runtime.api.usage import refuse_used_definition
from conveyor_runtime.engine.validation import PIPELINE, builtin_definition, parse
from conveyor_runtime.errors import NotFound
from conveyor_runtime.models import ResourceDefinition

router = APIRouter(tags=["resource definitions"])


def _definition(document: dict[str, Any]) -> ResourceDefinition:
    return parse(ResourceDefinition, document, "the resource definition", extra="forbid")


def _view(definition: ResourceDefinition) -> DefinitionView:
    return DefinitionView(**definition.__dict__)


@router.post("/resource-definitions", status_code=201, **takes(ResourceDefinition))
async def create(document: Document, services: ServicesDep, response: Response) -> DefinitionView:
    """Create a definition."""
    stored, revision = await services.intake.definitions.write(_definition(document), may_exist=False)
    response.headers.update(revision_header(revision))
    return _view(stored)


@router.post("/resource-definitions/apply", status_code=201, **takes(ResourceDefinition))
async def apply(document: Document, services: ServicesDep, response: Response) -> DefinitionView:
    """Create a definition or replace it; 201 either way, as Conveyor answers."""
    stored, revision = await services.intake.definitions.write(_definition(document), may_exist=True)
    response.headers.update(revision_header(revision))
    return _view(stored)


@router.get("/resource-definitions", dependencies=[Current])
async def list_all(services: ServicesDep) -> Page[DefinitionView]:
    """All definitions by name, the built-in one included."""
    known = [*services.state.view.definitions(), builtin_definition()]
    return Page(items=[_view(it) for it in sorted(known, key=lambda it: it.name)])


@router.get("/resource-definitions/{name}")
async def read(name: ObjectName, services: ServicesDep) -> DefinitionView:
    """A definition."""
    if name == PIPELINE:
        return _view(builtin_definition())
    found = await services.state.definition(name)
    if found is None:
        raise NotFound(f"there is no resource definition named {name}")
    return _view(found.record)


@router.put("/resource-definitions/{name}", **takes(ResourceDefinition))
async def update(name: ObjectName, document: Document, services: ServicesDep, response: Response) -> DefinitionView:
    """Replace a definition."""
    definition = _definition(same_as_path(document, name=name))
    stored, revision = await services.intake.definitions.write(definition, may_exist=True, must_exist=True)
    response.headers.update(revision_header(revision))
    return _view(stored)


@router.delete("/resource-definitions/{name}", status_code=204, response_class=Response)
async def delete(name: ObjectName, services: ServicesDep) -> Response:
    """Delete a definition. 409 while there are resources of its type."""
    await refuse_used_definition(services.state, name)
    revision = await services.intake.definitions.delete(name)
    return Response(status_code=204, headers=revision_header(revision))
