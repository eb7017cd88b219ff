"""A JSON Schema for people: its fields, one a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from conveyor_runtime.cli.output import Column

__all__ = ["FIELD_COLUMNS", "fields_of"]

FIELD_COLUMNS = (
    Column("FIELD", lambda it: it["field"]),
    Column("TYPE", lambda it: it["type"]),
    Column("DEFAULT", lambda it: it["default"]),
    Column("DESCRIPTION", lambda it: it["description"]),
)

#: Objects in objects that are opened; one may hold itself.
_DEPTH = 4


def fields_of(schema: Any) -> list[dict[str, str]]:
    """The fields of an object's schema, those of objects in it behind a dot; empty if it names none."""
    return list(_fields(schema, schema, "", _DEPTH)) if isinstance(schema, dict) else []


def _fields(root: dict[str, Any], schema: dict[str, Any], prefix: str, depth: int) -> Iterator[dict[str, str]]:
    for name, given in _mapping(schema.get("properties")).items():
        field = _resolved(root, given)
        default = field.get("default")
        yield {
            "field": f"{prefix}{name}",
            "type": _type(root, field, depth),
            "default": "(required)" if name in schema.get("required", ()) else _value(default) if default else "",
            "description": str(field.get("description", "")).partition("\n")[0],
        }
        if depth:
            inner, more = field, f"{prefix}{name}."
            if field.get("type") == "array":
                inner, more = _resolved(root, field.get("items")), f"{prefix}{name}[]."
            yield from _fields(root, inner, more, depth - 1)


def _type(root: dict[str, Any], field: dict[str, Any], depth: int) -> str:
    if "enum" in field:
        return " | ".join(map(_value, field["enum"]))
    for word in ("anyOf", "oneOf"):
        if word in field and depth:
            found = [_type(root, _resolved(root, it), depth - 1) for it in field[word]]
            return " | ".join(dict.fromkeys(it for it in found if it != "null"))
    kind = field.get("type", "any")
    if kind == "array":
        items = _resolved(root, field.get("items"))
        return f"[{_type(root, items, depth - 1) if items and depth else 'any'}]"
    return " | ".join(kind) if isinstance(kind, list) else str(kind)


def _resolved(root: dict[str, Any], schema: Any) -> dict[str, Any]:
    """A schema, or the one of the same document that it refers to; beyond that, nothing is known of it."""
    found: Any = schema
    reference = _mapping(schema).get("$ref")
    if isinstance(reference, str):
        found = root
        for part in filter(None, reference.removeprefix("#").split("/")):
            found = _mapping(found).get(part.replace("~1", "/").replace("~0", "~"))
    return _mapping(found)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
