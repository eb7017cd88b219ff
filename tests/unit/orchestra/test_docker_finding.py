"""Which engine is meant: in the docker command's order."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from conveyor_runtime.errors import BackendUnavailable
from conveyor_runtime.orchestra.docker.client import Engine
from conveyor_runtime.orchestra.docker.finding import address, connection
from tests.support.required import missing


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The docker command's directory, with the contexts `one` and `two`."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    for name in ("one", "two"):
        write(tmp_path, name, {"docker": {"Host": f"unix:///run/{name}.sock", "SkipTLSVerify": False}})
    return tmp_path


def write(config: Path, name: str, endpoints: object) -> None:
    folder = config / "contexts/meta" / hashlib.sha256(name.encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": endpoints}))


def test_the_order(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (connection(), address()) == ({}, "its default socket")
    (config / "config.json").write_text('{"currentContext": "one"}')
    assert (connection(), address()) == ({"base_url": "unix:///run/one.sock"}, "its context 'one'")
    monkeypatch.setenv("DOCKER_CONTEXT", "two")
    assert connection() == {"base_url": "unix:///run/two.sock"}
    (config / "config.json").unlink()
    assert connection() == {"base_url": "unix:///run/two.sock"}
    monkeypatch.setenv("DOCKER_CONTEXT", "default")
    assert connection() == {}
    monkeypatch.setenv("DOCKER_CONTEXT", "one")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    assert (connection(), address()) == ({"base_url": "tcp://127.0.0.1:1"}, "tcp://127.0.0.1:1")


def test_a_context_with_certificates(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(config, "far", {"docker": {"Host": "tcp://10.0.0.1:2376", "SkipTLSVerify": False}})
    folder = config / "contexts/tls" / hashlib.sha256(b"far").hexdigest() / "docker"
    folder.mkdir(parents=True)
    for name in ("ca", "cert", "key"):
        (folder / f"{name}.pem").touch()
    monkeypatch.setenv("DOCKER_CONTEXT", "far")
    found = connection()
    assert found["base_url"] == "tcp://10.0.0.1:2376"
    assert (found["tls"].cert, found["tls"].verify) == ((str(folder / "cert.pem"), str(folder / "key.pem")), True)


async def test_a_context_that_is_no_use(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, endpoints in (("bad", "nonsense"), ("empty", {})):
        write(config, name, endpoints)
        monkeypatch.setenv("DOCKER_CONTEXT", name)
        with pytest.raises(BackendUnavailable, match=f"'{name}'"):
            await Engine.open()
    monkeypatch.setenv("DOCKER_CONTEXT", "missing")
    with pytest.raises(BackendUnavailable, match="at its context 'missing': there is no such context"):
        await Engine.open()


@pytest.mark.docker
def test_a_context_as_the_docker_command_writes_it(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = shutil.which("docker")
    if command is None:
        missing("docker", "there is no docker command")
    assert command is not None
    host = "host=unix:///run/made.sock"
    subprocess.run([command, "context", "create", "made", "--docker", host], check=True, capture_output=True)
    subprocess.run([command, "context", "use", "made"], check=True, capture_output=True)
    assert connection() == {"base_url": "unix:///run/made.sock"}
