"""Whether a document is what its type says: JSON pointers and reasons, never a stack trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from typing import Any, Literal, TypeVar, get_args

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


def parse(model: type[M], value: Any, what: str, *, at: str = "", extra: Literal["ignore", "forbid"] = "ignore") -> M:
    """`value`, which stands at pointer `at` of what was sent, as `model`. Raises InvalidInput with a pointer for each
    thing wrong; with `extra` forbid, members that the model does not know are."""
    try:
        return model.model_validate(value, extra=extra)
    except ValidationError as error:
        # A misspelt member explains the one that is missing.
        found = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")[:_MOST_PROBLEMS]
        problems = [Problem(at + _pointer(item["loc"]), _reason(model, item)) for item in found]
        raise InvalidInput(f"{what} is not valid: {problems[0]}", problems) from None


def _reason(model: type[BaseModel], item: Any) -> str:
    if item["type"] != "extra_forbidden":
        return str(item["msg"])
    *around, name = item["loc"]
    for part in around:
        inner = _fields(model).get(str(part))
        found = (it for it in (inner, *get_args(inner)) if isinstance(it, type) and issubclass(it, BaseModel))
        model = next(found, model)
    return _no_field(name, _fields(model))


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    """Types of a model's fields by their names on the wire."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _no_field(name: str, known: Iterable[str]) -> str:
    names = list(known)
    if close := get_close_matches(str(name), names, 1):
        return f"there is no such field; did you mean {close[0]}?"
    return "there is no such field" + (f"; there are {', '.join(names)}" if names else "")


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
        # A misspelt member explains the one that is missing.
        order = lambda error: (str(error.instance_path), not hasattr(error.kind, "unexpected"))  # noqa: E731
        errors = sorted(self._compile(definition).iter_errors(spec), key=order)
        if errors:
            found = (problem for error in errors for problem in _problems(definition.schema_, error))
            problems = list(islice(found, _MOST_PROBLEMS))
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
            where = _pointer(getattr(error, "instance_path", ()))
            raise InvalidInput(
                f"the schema is no JSON Schema: {reason}", [Problem(f"/schema{where}", reason)]
            ) from None
        self._compiled[definition.name] = (definition.schema_, validator)
        return validator


def _problems(schema: Any, error: jsonschema_rs.ValidationError) -> Iterator[Problem]:
    """What a schema's complaint says, each member it does not know by itself."""
    at = "/spec" + _pointer(error.instance_path)
    unexpected = getattr(error.kind, "unexpected", None)
    if not unexpected:
        yield Problem(at, error.message)
        return
    try:
        for part in list(error.schema_path)[:-1]:
            schema = schema[part]
        known = schema.get("properties", ())
    except (LookupError, TypeError, AttributeError):  # a schema with addresses of its own
        known = ()
    for name in unexpected:
        yield Problem(f"{at}/{_escape(name)}", _no_field(name, known))


def _no_retrieval(uri: str) -> Any:
    raise ValueError(f"$ref to {uri}: a schema may only refer to itself")


def _escape(part: object) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")


def _pointer(location: Iterable[int | str]) -> str:
    return "".join(f"/{_escape(part)}" for part in location)
