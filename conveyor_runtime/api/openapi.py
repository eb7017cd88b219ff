"""The description of the API. Bodies are read by `documents`, so what they hold is told to the framework here."""

from __future__ import annotations

from typing import Any, TypedDict

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from conveyor_runtime.api import shapes
from conveyor_runtime.models import DriverMessage, ResourceDefinition

_REF = "#/components/schemas/{model}"

#: What the bodies of requests may be. Answers need no list: routes are annotated with theirs.
_BODIES: tuple[type[BaseModel], ...] = (
    shapes.ResourceDraft,
    shapes.PipelineDraft,
    shapes.CancelRequest,
    shapes.LogDraft,
    ResourceDefinition,
    DriverMessage,
)


class _Extra(TypedDict):
    openapi_extra: dict[str, Any]


def takes(model: type[BaseModel], required: bool = True) -> _Extra:
    """Keyword arguments of a route whose body is a `model`."""
    assert model in _BODIES, model
    schema = {"$ref": _REF.format(model=model.__name__)}
    body = {"required": required, "content": {"application/json": {"schema": schema}}}
    return {"openapi_extra": {"requestBody": body}}


def install(app: FastAPI) -> None:
    """Have the app describe itself with the bodies of its routes."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            inputs = [(model, "validation") for model in _BODIES]
            _, defined = models_json_schema(inputs, ref_template=_REF)  # type: ignore[arg-type]
            known = schema.setdefault("components", {}).setdefault("schemas", {})
            for name, definition in defined["$defs"].items():
                known.setdefault(name, definition)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]
