"""Where a driver command finds its bus."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from conveyor_runtime.cli.connection import DEFAULT_API_URL, Globals, address_of, find_bus
from conveyor_runtime.cli.errors import CliError, ExitCode


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONVEYOR_DATA", raising=False)


def _ready(text: str) -> None:
    Path(".conveyor").mkdir()
    Path(".conveyor/ready.json").write_text(text)


def test_the_ready_file_here_names_the_bus(capsys: pytest.CaptureFixture[str]) -> None:
    _ready(json.dumps({"api": "http://a", "nats": "nats://u:secret@h:1", "token": ""}))
    assert find_bus("") == "nats://u:secret@h:1"
    assert capsys.readouterr().err == "using the bus of .conveyor/ready.json: nats://***@h:1\n"
    assert find_bus("nats://other") == "nats://other"
    assert capsys.readouterr().err == ""


def test_without_any_all_three_ways_are_named() -> None:
    with pytest.raises(CliError) as caught:
        find_bus("")
    assert caught.value.code is ExitCode.USAGE
    for way in ("--nats-url", "CONVEYOR_NATS_URL", ".conveyor/ready.json"):
        assert way in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '"x"'])
def test_an_unreadable_ready_file_is_said(text: str) -> None:
    _ready(text)
    with pytest.raises(CliError, match="no bus can be read from it"):
        find_bus("")


def _given(api_url: str = "") -> Any:
    return cast(Any, SimpleNamespace(find_object=lambda kind: Globals(api_url=api_url)))


def test_the_ready_file_here_names_the_api_and_its_token() -> None:
    _ready(json.dumps({"api": "http://a", "nats": "nats://h:1", "token": "secret"}))
    assert address_of(_given(), None) == ("http://a", "secret")
    assert address_of(_given("http://b"), None) == ("http://b", "")
    assert address_of(_given("http://b"), "http://c") == ("http://c", "")


@pytest.mark.parametrize("text", ["", "[]", "{}", '"x"', '{"api": 1}'])
def test_a_ready_file_that_names_no_api_is_none(text: str) -> None:
    _ready(text)
    assert address_of(_given(), None) == (DEFAULT_API_URL, "")
