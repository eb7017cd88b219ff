"""Whether a document is what its type says: JSON pointers and reasons, never a stack trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jsonschema_rs
import orjson
from pydantic import BaseModel, ValidationError

from conveyor_runtime.errors import InvalidInput, Problem, TooLarge
from conveyor_runtime.models import PipelineSpec, ResourceDefinition

M = TypeVar("M", bound=BaseModel)

#: Bytes of a spec as JSON.
MAX_SPEC = 256 * 1024

#: The type that pipelines are resources of.
PIPELINE = "pipeline"

_MOST_PROBLEMS = 20


def parse(model: type[M], value: Any, what: str, *, at: str = "") -> M:
    """`value`, which stands at pointer `at` of what was sent, as `model`. Raises InvalidInput with a pointer for each
    thing wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = [Problem(at + _pointer(item["loc"]), item["msg"]) for item in error.errors()[:_MOST_PROBLEMS]]
        raise InvalidInput(f"{what} is not valid: {problems[0]}", problems) from None


def check_size(spec: Any) -> None:
    """Raises TooLarge for a spec above the limit."""
    try:
        size = len(orjson.dumps(spec))
    except TypeError as error:
        raise InvalidInput(f"the spec cannot be stored: {error}", [Problem("/spec", str(error))]) from None
    if size > MAX_SPEC:
        raise TooLarge(f"the spec is {size} bytes as JSON; at most {MAX_SPEC} are stored")


def builtin_definition() -> ResourceDefinition:
    """The definition of the built-in type `pipeline`."""
    return ResourceDefinition(
        id=PIPELINE,
        name=PIPELINE,
        description="Which drivers run for a resource, in what order (built in)",
        schema=PipelineSpec.model_json_schema(by_alias=True),
    )


class SpecValidator:
    """Validates specs against their definitions; compiled schemas are kept by definition and content."""

    def __init__(self) -> None:
        self._compiled: dict[str, tuple[Any, jsonschema_rs.Validator]] = {}

    def check_schema(self, definition: ResourceDefinition) -> None:
        """Raises InvalidInput if the definition's schema is no JSON Schema."""
        if definition.schema_ is not None:
            self._compile(definition)

    def check(self, definition: ResourceDefinition, spec: Any) -> None:
        """Raises InvalidInput with JSON pointers into the spec, TooLarge above the limit."""
        check_size(spec)
        if not isinstance(spec, Mapping):
            raise InvalidInput("spec must be an object", [Problem("/spec", "must be an object")])
        if definition.schema_ is None:
            return
        errors = sorted(self._compile(definition).iter_errors(spec), key=lambda error: str(error.instance_path))
        if errors:
            problems = [
                Problem("/spec" + "".join(f"/{_escape(part)}" for part in error.instance_path), error.message)
                for error in errors[:_MOST_PROBLEMS]
            ]
            raise InvalidInput(f"the spec does not satisfy definition {definition.name}: {problems[0]}", problems)

    def _compile(self, definition: ResourceDefinition) -> jsonschema_rs.Validator:
        known = self._compiled.get(definition.name)
        if known is not None and known[0] == definition.schema_:
            return known[1]
        try:
            jsonschema_rs.meta.validate(definition.schema_)
            validator = jsonschema_rs.validator_for(definition.schema_, retriever=_no_retrieval)
        except (jsonschema_rs.ValidationError, ValueError) as error:
            reason = getattr(error, "message", None) or str(error)
            where = "".join(f"/{_escape(part)}" for part in getattr(error, "instance_path", ()))
            raise InvalidInput(
                f"the schema is no JSON Schema: {reason}", [Problem(f"/schema{where}", reason)]
            ) from None
        self._compiled[definition.name] = (definition.schema_, validator)
        return validator


def _no_retrieval(uri: str) -> Any:
    raise ValueError(f"$ref to {uri}: a schema may only refer to itself")


def _escape(part: object) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")


def _pointer(location: tuple[int | str, ...]) -> str:
    return "".join(f"/{_escape(part)}" for part in location)
