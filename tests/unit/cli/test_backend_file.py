"""What an operator writes for the backends, and what is said of mistakes in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from conveyor_runtime.cli.app import app
from conveyor_runtime.cli.backend_file import backend_settings
from conveyor_runtime.cli.errors import CliError, ExitCode
from conveyor_runtime.config import BackendSettings, Credentials, DriverSettings, ImageSettings, WarmSettings
from conveyor_runtime.daemon.up import Running, UpSettings, _environment

FILE = """
native_root: /srv/native
host_paths: [/srv/cache, /opt/sdk]
networks: [builds-1, builds-2]
images:
  credentials:
    "registry.example.org:5000": {user: ci, password: s3cret}
  pull_retries: 5
  cache_bytes: 20Gi
  cache_exempt: ["debian:stable-slim"]
warm:
  images: {"debian:stable-slim": 2}
  on_request: 1
  ttl: 5m
options: {region: north}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "backends.yaml"
    path.write_text(FILE)
    return path


def test_all_of_it_is_read(file: Path) -> None:
    assert backend_settings(file, None) == BackendSettings(
        native_root=Path("/srv/native"),
        host_paths=(Path("/srv/cache"), Path("/opt/sdk")),
        networks=("builds-1", "builds-2"),
        images=ImageSettings(
            credentials={"registry.example.org:5000": Credentials("ci", "s3cret")},
            pull_retries=5,
            cache_bytes=20 << 30,
            cache_exempt=("debian:stable-slim",),
        ),
        warm=WarmSettings(images={"debian:stable-slim": 2}, on_request=1, ttl=300.0),
        options={"region": "north"},
    )


def test_without_a_file_and_with_an_option() -> None:
    assert backend_settings(None, None) == BackendSettings()
    assert backend_settings(None, Path("/here")) == BackendSettings(native_root=Path("/here"))


def test_the_option_wins(file: Path) -> None:
    assert backend_settings(file, Path("/here")).native_root == Path("/here")


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        ("cache_bytes: 20Gi", "cache_bytes: lots", ":9:16: /images/cache_bytes: "),
        ("pull_retries: 5", "pull_retry: 5", ":8:"),
        ("password: s3cret", "password: [s3cret]", ":7:"),
        ("/srv/cache", "cache", ":3:14: /host_paths/0: "),
        ("ttl: 5m", "ttl: soon", "/warm/ttl"),
        ('stable-slim": 2', 'stable-slim": 0', "/warm/images/debian:stable-slim"),
    ],
)
def test_mistakes_are_pointed_at(file: Path, line: str, instead: str, said: str) -> None:
    assert line in FILE
    file.write_text(FILE.replace(line, instead))
    with pytest.raises(CliError) as error:
        backend_settings(file, None)
    assert error.value.code is ExitCode.USAGE
    assert said in str(error.value)
    assert "s3cret" not in str(error.value)


def test_the_drivers_of_up_are_told_the_file(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    given: list[UpSettings] = []

    def run(settings: UpSettings) -> int:
        given.append(settings)
        return 0

    monkeypatch.setattr("conveyor_runtime.daemon.run.run_up", run)
    monkeypatch.setattr("conveyor_runtime.cli.serving.start_logging", lambda *_: None)
    monkeypatch.chdir(file.parent)
    found = CliRunner().invoke(app, ["up", "--backend", "native", "--backend-file", file.name])
    assert found.exit_code == 0, found.output
    [settings] = given
    assert settings.driver.backends == backend_settings(file, None)
    environment = _environment(settings, Running("", "", "", cast(Any, None)))
    assert environment["CONVEYOR_BACKEND_FILE"] == str(file)
    assert environment["CONVEYOR_NATIVE_ROOT"] == "/srv/native"


@pytest.mark.parametrize("command", [["driver", "run", "builder"], ["builder"]])
def test_a_drivers_process_reads_it(command: list[str], monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    given: list[DriverSettings] = []

    def run(driver: Any, bus: Any, settings: DriverSettings, *_: Any) -> int:
        given.append(settings)
        return 0

    monkeypatch.setattr("conveyor_runtime.daemon.worker.run_driver", run)
    monkeypatch.setattr("conveyor_runtime.cli.serving.start_logging", lambda *_: None)
    environment = {"CONVEYOR_BACKEND_FILE": str(file), "CONVEYOR_NATS_URL": "nats://h"}
    found = CliRunner().invoke(app, command, env=environment)
    assert found.exit_code == 0, found.output
    assert given[0].backends == backend_settings(file, None)
