"""What `up` says of a bus that nobody named on the command line."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from conveyor_runtime.cli.app import app
from conveyor_runtime.cli.errors import CliError, ExitCode
from conveyor_runtime.errors import BusUnavailable


@pytest.fixture(autouse=True)
def _no_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any) -> int:
        raise BusUnavailable("no bus there")

    monkeypatch.setattr("conveyor_runtime.daemon.run.run_up", run)
    monkeypatch.setattr("conveyor_runtime.cli.serving.start_logging", lambda *_: None)
    monkeypatch.delenv("CONVEYOR_NATS_URL", raising=False)


@pytest.mark.parametrize("command", ["up", "serve"])
def test_the_variable_is_named(command: str) -> None:
    found = CliRunner().invoke(app, [command], env={"CONVEYOR_NATS_URL": "nats://h"})
    assert isinstance(found.exception, CliError)
    assert found.exception.code is ExitCode.UNREACHABLE
    assert "no bus there: the address is that of CONVEYOR_NATS_URL" in str(found.exception)
    said = "using the NATS server of CONVEYOR_NATS_URL; --data is not used for state\n"
    assert (said in found.stderr) == (command == "up")


def test_an_address_that_was_typed_needs_no_more_words() -> None:
    found = CliRunner().invoke(app, ["up", "--nats-url", "nats://h"], env={"CONVEYOR_NATS_URL": "nats://other"})
    assert isinstance(found.exception, BusUnavailable)
    assert found.stderr == ""
