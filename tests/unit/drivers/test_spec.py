"""BuildSpec: what is taken, in which units, and that its schema says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from pydantic import ValidationError

import pipelines
from conveyor_runtime.cli.documents import read_documents
from conveyor_runtime.models import PipelineSpec, Resource
from conveyor_runtime.orchestra import Limits
from drivers.spec import BuildSpec, backend_of, parse_cpu, parse_env, parse_memory

R = {"repository": "https://example.org/r"}

GOOD: list[dict[str, Any]] = [
    {},
    {"branch": "main"},
    {"ref": "main", "branch": "main"},
    {"env": [{"name": "A", "value": "b"}, {"name": "EMPTY"}]},
    {"env": {"A": "b", "N": 1, "B": True}},
    {"commands": ["make", "a\nb"]},
    {"limits": {"cpu": "500m", "memory": "512Mi", "disk": "20Gi", "pids": 100}},
    {"limits": {"cpu": 1.5, "memory": 1_000_000}},
    {"timeout": 90},
    {"timeout": "90"},
    {"timeout": "1h30m"},
    {"timeout": "2.5s"},
    {"backend": "qemu"},
    {"depth": 0, "submodules": True, "pull": "never", "workdir": "a/b"},
]

BAD: list[dict[str, Any]] = [
    {"repository": ""},
    {"repository": 7},
    {"commands": "make"},
    {"commands": [""]},
    {"commands": [1]},
    {"env": "A=b"},
    {"env": [{"value": "x"}]},
    {"env": [{"name": "A=B", "value": "x"}]},
    {"env": {"": "x"}},
    {"env": {"A": ["x"]}},
    {"limits": {"cpu": "many"}},
    {"limits": {"cpu": 0}},
    {"limits": {"memory": "512 MB"}},
    {"limits": {"memory": -1}},
    {"limits": {"disk": "much"}},
    {"limits": {"pids": 0}},
    {"limits": {"cpus": 1}},
    {"env": [{"name": "A", "vlaue": "x"}]},
    {"timeout": 0},
    {"timeout": -1},
    {"timeout": "soon"},
    {"timeout": ""},
    {"backend": "../x"},
    {"depth": -1},
    {"pull": "sometimes"},
    {"submodules": "maybe"},
]


@pytest.fixture(scope="module")
def schema() -> Any:
    return jsonschema_rs.Draft202012Validator(pipelines.definition("ci-build")["schema"])


@pytest.mark.parametrize("spec", GOOD, ids=str)
def test_taken_by_both(spec: dict[str, Any], schema: Any) -> None:
    BuildSpec.model_validate({**R, **spec})
    schema.validate({**R, **spec})


@pytest.mark.parametrize("spec", BAD, ids=str)
def test_refused_by_both(spec: dict[str, Any], schema: Any) -> None:
    with pytest.raises(ValidationError):
        BuildSpec.model_validate({**R, **spec})
    assert not schema.is_valid({**R, **spec})


def test_refused_by_the_model_where_a_schema_has_no_words() -> None:
    for spec in ({"ref": "a", "branch": "b"}, {"commands": ["a\0b"]}, {"env": {"A": "b\0"}}, {"limits": {"cpu": "0m"}}):
        with pytest.raises(ValidationError):
            BuildSpec.model_validate({**R, **spec})


def test_units() -> None:
    limits = {"cpu": "1500m", "memory": "1Gi", "pids": 7}
    spec = BuildSpec.model_validate({**R, "limits": limits, "timeout": "1h30m", "branch": "b"})
    assert spec.limits.as_limits() == Limits(cpu_milli=1500, memory_bytes=2**30, pids=7)
    assert (spec.timeout, spec.ref) == (5400, "b")
    assert BuildSpec.model_validate(R).limits.as_limits() == Limits()
    assert [parse_cpu(value) for value in (2, 0.25, "0.5", "10m")] == [2000, 250, 500, 10]
    assert [parse_memory(value) for value in (5, "5", "1K", "1Ki", "1.5M", "2G")] == [
        5,
        5,
        1000,
        1024,
        1_500_000,
        2 * 10**9,
    ]
    assert parse_env([{"name": "A", "value": 1}, {"name": "B", "value": False}]) == {"A": "1", "B": "false"}


def test_further_fields_are_kept_where_another_definition_allows_them(schema: Any) -> None:
    spec = BuildSpec.model_validate({**R, "build_type": "release"})
    assert spec.model_dump()["build_type"] == "release"
    assert not schema.is_valid({**R, "build_type": "release"})


def test_backend_of_decoded_and_raw() -> None:
    raw: Resource[Any] = Resource(spec={"backend": "docker"})
    assert backend_of(raw) == "docker"
    assert backend_of(Resource[BuildSpec](spec=BuildSpec.model_validate({**R, "backend": "native"}))) == "native"
    assert backend_of(Resource(spec={"backend": 7})) is None
    assert backend_of(Resource()) is None


def test_shipped_definition_has_the_schema_of_the_model() -> None:
    assert pipelines.definition("ci-build")["schema"] == BuildSpec.model_json_schema()
    jsonschema_rs.meta.validate(pipelines.definition("ci-build")["schema"])


def test_shipped_data_fits_together() -> None:
    assert pipelines.definitions() == ["ci-build", "task"]
    for name in pipelines.pipelines():
        found = PipelineSpec.model_validate(pipelines.pipeline(name))
        assert [step.driver for step in found.finally_] == ["container-stop"]
    assert pipelines.definition("ci-build")["pipeline"] in pipelines.pipelines()
    for path in Path(pipelines.__file__).with_name("samples").iterdir():
        *_, sample = read_documents(str(path))
        BuildSpec.model_validate({**pipelines.defaults()[sample.value["resource"]], **sample.value["spec"]})
    for defaults in pipelines.defaults().values():
        assert BuildSpec.model_validate({**R, **defaults}).limits.as_limits() == Limits()
    with pytest.raises(FileNotFoundError, match="ci-build"):
        pipelines.pipeline("../pipelines/ci-build")


def test_disk_is_set_aside_but_asked_of_no_backend() -> None:
    limits = BuildSpec.model_validate({**R, "limits": {"cpu": 2, "disk": "20Gi"}}).limits
    assert (limits.as_use().cpu_milli, limits.as_use().disk_bytes) == (2000, 20 * 2**30)
    assert (limits.as_limits().cpu_milli, limits.as_limits().disk_bytes) == (2000, 0)
