"""Shapes others read and write."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from conveyor_runtime.models import (
    DriverMessage,
    DriverRecord,
    LogLine,
    PipelineEvent,
    PipelineSpec,
    Resource,
    RunRecord,
    Status,
    is_name,
    parse_duration,
    short,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(90, 90), (0.5, 0.5), ("90", 90), ("1.5", 1.5), ("90s", 90), ("5m", 300), ("1h30m", 5400), (" 1h1m1s ", 3661)],
)
def test_durations(text: Any, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "bad",
    [0, -1, "0s", "", " ", "s", "1d", "1m1h", "1 m", "-5", "nan", "inf", True, None, [], float("nan"), float("inf"),
     10**400, "9" * 400, "400d", 366 * 86400 + 1],
)  # fmt: skip
def test_what_is_no_duration(bad: Any) -> None:
    with pytest.raises(ValueError):
        parse_duration(bad)


@settings(deadline=None)
@given(st.text(max_size=20))
def test_a_duration_is_read_or_refused_and_nothing_else(text: str) -> None:
    try:
        assert parse_duration(text) > 0
    except ValueError:
        pass


@pytest.mark.parametrize("good", ["a", "A-Z_09", "x" * 128])
def test_names(good: str) -> None:
    assert is_name(good)


@pytest.mark.parametrize("bad", ["", "a.b", "a b", "*", ">", "a/b", "ü", "a\n", "\na", "x" * 129, "a\x00"])
def test_what_is_no_name(bad: str) -> None:
    assert not is_name(bad)
    with pytest.raises(ValidationError):
        PipelineSpec.model_validate({"resource": bad})


def ids(*steps: dict[str, Any], last: tuple[dict[str, Any], ...] = ()) -> list[str]:
    spec = PipelineSpec.model_validate({"resource": "t", "steps": steps, "finally": last}).with_ids()
    return [step.id for step in (*spec.steps, *spec.finally_)]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([{"driver": "d"}], ["d"]),
        ([{"driver": "d", "name": "Build it!"}], ["Build-it"]),
        ([{"driver": "d", "name": "!!!"}], ["d"]),
        ([{"driver": "d"}, {"driver": "d"}, {"driver": "d"}], ["d", "d-2", "d-3"]),
        ([{"driver": "d"}, {"id": "d", "driver": "e"}], ["d-2", "d"]),
        ([{"id": "", "driver": "d"}, {"id": None, "driver": "e"}], ["d", "e"]),
        ([{"driver": "x" * 128}, {"driver": "x" * 128}], ["x" * 128, "x" * 120 + "-2"]),
    ],
)
def test_ids_of_steps(steps: list[dict[str, Any]], expected: list[str]) -> None:
    assert ids(*steps) == expected


def test_ids_are_unique_in_the_whole_pipeline() -> None:
    assert ids({"driver": "d"}, last=({"driver": "d"},)) == ["d", "d-2"]
    with pytest.raises(ValidationError, match="used more than once: x"):
        ids({"id": "x", "driver": "d"}, last=({"id": "x", "driver": "e"},))


def test_null_lists_are_empty() -> None:
    assert PipelineSpec.model_validate({"resource": "t", "steps": None, "finally": None}).steps == ()


@pytest.mark.parametrize("model", [Resource, DriverMessage, PipelineEvent, LogLine])
def test_fields_nobody_knows_are_tolerated(model: Any) -> None:
    assert model.model_validate({"from": "the future", "nested": {"a": [1]}}) == model()


def test_records_of_a_newer_version_are_read() -> None:
    record = DriverRecord(name="d", types=("t",))
    newer = record.encode()[:-1] + b',"color":"blue"}'
    assert DriverRecord.model_validate_json(newer) == record


def test_a_payload_may_be_an_object() -> None:
    assert DriverMessage.model_validate_json(b'{"payload":{"a":1}}').payload == '{"a":1}'
    with pytest.raises(ValidationError):
        DriverMessage.model_validate_json(b'{"payload":{"a":123456789012345678901234567890}}')


def test_a_resource_without_metadata_has_none() -> None:
    assert Resource.model_validate({"metadata": None}).metadata == {}


def test_the_status_stands_before_anything_a_user_fills() -> None:
    run = RunRecord(
        run_id="r", type="t", name="n", event="create", generation=1, status=Status.RUNNING, created_at=NOW,
        reason='"status":"Succeeded"',
    )  # fmt: skip
    assert run.encode().index(b'"status":"Running"') < run.encode().index(b"reason")


@pytest.mark.parametrize(
    ("line", "at"),
    [
        ({"timestamp": "1893456000"}, NOW),
        ({"timestamp": 1893456000}, NOW),
        ({"timestamp": "2030-01-01T00:00:00Z"}, NOW),
        ({"timestamp": "2030-01-01T00:00:00"}, NOW),
        ({"time": "2030-01-01T00:00:00.000000000Z", "timestamp": "1"}, NOW),
        ({"timestamp": ""}, None),
        ({"timestamp": "yesterday"}, None),
        ({"timestamp": "1e300"}, None),
        ({"timestamp": "inf"}, None),
    ],
)
def test_when_a_line_was_logged(line: dict[str, Any], at: datetime | None) -> None:
    assert LogLine.model_validate(line).at == at


def test_both_spellings_of_the_run_are_read() -> None:
    assert LogLine.model_validate({"run_id": "r"}).runid == "r"
    assert LogLine.model_validate({"run_id": "x", "runid": "r"}).runid == "r"


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("fine", "fine"),
        ("ä" * 1000, "ä" * 1000),
        ("x" * 1001, "x" * 999 + "…"),
        ("no such file: \udcff", "no such file: ?"),
    ],
)
def test_what_a_run_record_keeps_of_a_message(message: str, kept: str) -> None:
    assert short(message) == kept
