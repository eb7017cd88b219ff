"""Specs and schemas: what is refused, where, and why."""

from __future__ import annotations

from typing import Any

import pytest

from conveyor_runtime.engine.validation import MAX_SPEC, SpecValidator, builtin_definition, check_size, parse
from conveyor_runtime.errors import InvalidInput, TooLarge
from conveyor_runtime.models import PipelineSpec, ResourceDefinition

SCHEMA = {
    "type": "object",
    "required": ["url"],
    "properties": {"url": {"type": "string"}, "a/b~c": {"type": "object", "properties": {"n": {"type": "integer"}}}},
}


def definition(schema: Any, name: str = "thing") -> ResourceDefinition:
    return ResourceDefinition(name=name, schema=schema)


def pointers(definition: ResourceDefinition, spec: Any) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        SpecValidator().check(definition, spec)
    return [problem.pointer for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ({}, ["/spec"]),
        ({"url": 1}, ["/spec/url"]),
        ({"url": "x", "a/b~c": {"n": "1"}}, ["/spec/a~1b~0c/n"]),
        ({"url": 1, "a/b~c": 2}, ["/spec/a~1b~0c", "/spec/url"]),
        ([], ["/spec"]),
        (None, ["/spec"]),
        ("text", ["/spec"]),
    ],
)
def test_every_problem_has_its_place(spec: Any, where: list[str]) -> None:
    assert pointers(definition(SCHEMA), spec) == where


def test_a_definition_without_schema_takes_any_object() -> None:
    SpecValidator().check(definition(None), {"what": ["ever"]})
    assert pointers(definition(None), 3) == ["/spec"]


@pytest.mark.parametrize(
    "schema",
    [
        5,
        "object",
        [],
        {"type": "nothing"},
        {"properties": 3},
        {"$ref": "https://example.org/other.json"},
        {"$ref": "#/$defs/missing"},
        {"type": "string", "pattern": "("},
    ],
)
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(InvalidInput, match="the schema is no JSON Schema"):
        SpecValidator().check_schema(definition(schema))


def test_a_changed_schema_counts_at_once() -> None:
    validator = SpecValidator()
    validator.check(definition({"type": "object"}), {})
    with pytest.raises(InvalidInput):
        validator.check(definition(SCHEMA), {})
    validator.check(definition({"type": "object"}), {})


def test_the_size_limit_is_of_the_json() -> None:
    check_size({"a": "x" * (MAX_SPEC - 8)})
    with pytest.raises(TooLarge, match="at most 262144"):
        check_size({"a": "x" * (MAX_SPEC - 7)})
    with pytest.raises(TooLarge):
        SpecValidator().check(definition(None), {"a": "x" * MAX_SPEC})


@pytest.mark.parametrize("value", [10**30, "\ud800", {1: 2}])
def test_what_no_json_can_hold_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput, match="cannot be stored"):
        check_size({"a": value})


def test_a_pipeline_says_what_is_wrong_where() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(PipelineSpec, {"resource": "a.b", "steps": [{"driver": "d"}, {"driver": "e", "timeout": "x"}]}, "it")
    assert [problem.pointer for problem in caught.value.problems] == ["/resource", "/steps/1/timeout"]


def test_the_built_in_definition_is_a_schema_of_its_own_rules() -> None:
    built_in = builtin_definition()
    SpecValidator().check_schema(built_in)
    SpecValidator().check(built_in, {"resource": "thing", "steps": [{"driver": "d"}]})
    assert pointers(built_in, {"steps": []}) == ["/spec"]
