"""What is printed: tables, words for times, YAML that is read again, nothing that drives a terminal."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from conveyor_runtime.cli.documents import read_documents
from conveyor_runtime.cli.errors import CliError, ExitCode, exit_code_of, explain
from conveyor_runtime.cli.options import Format, is_loopback, listed
from conveyor_runtime.cli.output import Column, age, between, clean, emit, print_table
from conveyor_runtime.cli.schema import fields_of
from conveyor_runtime.cli.watch import LinePrinter
from conveyor_runtime.client import (
    ClientError,
    ConflictError,
    InvalidRequestError,
    LoggedLine,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from conveyor_runtime.errors import BusUnavailable, ConfigError, Problem
from conveyor_runtime.models import Status

COLUMNS = (Column("NAME", lambda it: it["name"]), Column("WORDS", lambda it: it["words"]))
ROWS = [{"name": "a", "words": "one\ntwo"}, {"name": "longer", "words": "\x1b[2Jthree"}]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_plain_table_is_aligned_and_never_wrapped() -> None:
    out = io.StringIO()
    print_table(COLUMNS, [*ROWS, {"name": "b", "words": "w" * 300}], out)
    assert out.getvalue().splitlines() == [
        "NAME     WORDS",
        "a        one two",
        "longer   three",
        "b        " + "w" * 300,
    ]


def test_a_terminal_gets_colour_unless_nobody_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    column = (Column("STATUS", lambda it: it["status"]),)
    colourful, plain = Terminal(), Terminal()
    print_table(column, [{"status": "Failed"}], colourful)
    assert "\x1b[31m" in colourful.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    print_table(column, [{"status": "Failed"}], plain)
    assert "\x1b[3" not in plain.getvalue()
    assert "Failed" in plain.getvalue()


def test_a_narrow_terminal_spares_columns_and_folds_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = (COLUMNS[0], Column("MORE", lambda it: "m" * 9, spared=True), COLUMNS[1])
    rows = [{"name": "n" * 36, "words": "some words " * 5}]
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    for width, more in ((80, True), (63, False)):
        monkeypatch.setenv("COLUMNS", str(width))
        out = Terminal()
        print_table(columns, rows, out)
        lines = out.getvalue().splitlines()
        assert ("m" * 9 in out.getvalue()) is more
        assert "n" * 36 in lines[2], "what one copies is whole"
        assert len(lines) > 3 and max(map(len, lines[1:])) <= width


def test_a_schema_is_told_field_by_field() -> None:
    schema = {
        "properties": {
            "a": {"type": "string", "description": "One.\nMore."},
            "b": {"$ref": "#/$defs/B"},
            "c": {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"enum": ["x", 1]}, {"type": "null"}]},
            "d": {"type": "array", "items": {"$ref": "#/$defs/B"}, "default": [1]},
            "e": True,
        },
        "required": ["a"],
        "$defs": {"B": {"type": "object", "properties": {"n": {"type": ["number", "string"]}}}},
    }
    assert [tuple(field.values()) for field in fields_of(schema)] == [
        ("a", "string", "(required)", "One."),
        ("b", "object", "", ""),
        ("b.n", "number | string", "", ""),
        ("c", "[integer] | x | 1", "", ""),
        ("d", "[object]", "[1]", ""),
        ("d[].n", "number | string", "", ""),
        ("e", "any", "", ""),
    ]
    endless = {"properties": {"a": {"$ref": "#"}, "b": {"anyOf": [{"$ref": "#/properties/b"}]}}}
    assert [field["field"] for field in fields_of(endless)][:2] == ["a", "a.a"]
    odds: list[Any] = [None, True, {"type": "string"}, {"properties": []}, {"$ref": "#/nowhere"}]
    for odd in odds:
        assert fields_of(odd) == []


def test_one_thing_or_several_in_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    emit(ROWS, Format.JSON, COLUMNS, lambda it: str(it["name"]))
    assert json.loads(capsys.readouterr().out) == ROWS
    emit(ROWS[0], Format.JSON, COLUMNS, lambda it: str(it["name"]))
    assert json.loads(capsys.readouterr().out) == ROWS[0]
    emit(ROWS, Format.NAME, COLUMNS, lambda it: str(it["name"]))
    assert capsys.readouterr().out == "a\nlonger\n"


@pytest.mark.parametrize(
    "script",
    [
        "a\nb",
        "a\nb\n",
        " a\nb",
        "a \nb",
        "a\n\n\nb",
        "\ttab\n",
        "#c\n- d\n",
        "é\n\u2028x\n",
        "\x85\nb",
        "a\n---\nb",
        "\n",
        "x\r\ny",
    ],
)
def test_yaml_that_comes_out_goes_in(tmp_path: object, capsys: pytest.CaptureFixture[str], script: str) -> None:
    resource = {
        "resource": "t",
        "name": "yes",
        "spec": {"run": script, "when": "2024-01-01", "n": "1", "nothing": None},
    }
    emit([resource, resource], Format.YAML, (), str)
    path = f"{tmp_path}/out.yaml"
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(capsys.readouterr().out)
    assert [it.value for it in read_documents(path)] == [resource, resource]


def test_times_in_words() -> None:
    now = datetime(2024, 5, 1, 12, tzinfo=UTC)

    def ago(**time: float) -> str:
        return age((now - timedelta(**time)).isoformat(), now)

    assert [ago(seconds=5), ago(seconds=119), ago(minutes=2), ago(hours=3), ago(days=9)] == [
        "5s",
        "119s",
        "2m",
        "3h",
        "9d",
    ]
    assert ago(seconds=-5) == "0s", "clocks differ"
    assert (age(None), between(None, None)) == ("-", "-")

    def took(**time: float) -> str:
        return between(now.isoformat(), (now + timedelta(**time)).isoformat())

    assert [took(seconds=0.26), took(seconds=61), took(hours=2, seconds=5)] == ["0.3s", "1m01s", "2h00m05s"]


def test_nothing_that_drives_a_terminal() -> None:
    text = "a\x1b[31mb\x1b[0m\x1b[2J\x1b]0;title\x07\x08\rc\td"
    assert clean(text) == "abc\td"
    assert clean(text, keep_colour=True) == "a\x1b[31mb\x1b[0mc\td"


def test_log_lines_stand_behind_their_step() -> None:
    out = io.StringIO()
    printer = LinePrinter(out, steps=("a", "build"))
    printer.print(LoggedLine(step="a", message="x"))
    printer.print(LoggedLine(step="build", message="  y"))
    printer.print(LoggedLine(driver="foreign", message="z"))
    assert out.getvalue() == "[a]     x\n[build]   y\n[foreign] z\n"
    timed = io.StringIO()
    LinePrinter(timed, prefix=False, timestamps=True).print(LoggedLine(message="x", timestamp="0"))
    assert timed.getvalue() == "1970-01-01T00:00:00.000+00:00 x\n"


def test_a_line_says_where_another_attempt_or_takeover_begins() -> None:
    out = io.StringIO()
    printer = LinePrinter(out, steps=("a", "b"))
    for step, attempt, takeover in (("a", 1, 0), ("b", 1, 0), ("a", 2, 0), ("a", 2, 0), ("b", 1, 1), ("a", 2, 0)):
        printer.print(LoggedLine(step=step, attempt=attempt, takeover=takeover, message="x"))
    assert out.getvalue().splitlines() == [
        "[a] x",
        "[b] x",
        "[a] -- attempt 2 --",
        "[a] x",
        "[a] x",
        "[b] -- attempt 1, taken over by another worker (1) --",
        "[b] x",
        "[a] x",
    ]


def test_exit_codes_tell_how_a_run_ended() -> None:
    assert [int(exit_code_of(it)) for it in (Status.SUCCEEDED, Status.FAILED, Status.ERROR)] == [0, 1, 1]
    assert [int(exit_code_of(it)) for it in (Status.CANCELLED, Status.TIMED_OUT)] == [3, 4]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnreachableError("x"), 5),
        (UnavailableError("x"), 5),
        (BusUnavailable("x"), 5),
        (InvalidRequestError("x"), 2),
        (UnauthorizedError("x"), 2),
        (ConfigError("x"), 2),
        (FileNotFoundError(2, "No such file", "f"), 2),
        (ConflictError("x"), 1),
        (ClientError("x"), 1),
        (ValueError("x"), 1),
        (CliError("x", code=ExitCode.TIMED_OUT), 4),
    ],
)
def test_every_error_has_its_exit_code(error: Exception, code: int) -> None:
    assert explain(error).code == code


def test_problems_become_lines_of_their_own() -> None:
    problems = [Problem("/a", "is wrong"), Problem("/b", "too")]
    told = explain(InvalidRequestError("the spec is not valid: /a: is wrong", problems=problems))
    assert told.lines == ("/b: too",)


def test_small_parts() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]")] == [True] * 5
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "build.example")] == [False] * 4
    assert listed(" a, b,,c ") == ("a", "b", "c")
