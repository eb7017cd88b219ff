"""What `make test` puts around pytest: it never changes a verdict, and no requirement is silently none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import required

ROOT = Path(__file__).parents[2]


def run(*command: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "DOCKER_HOST": "unix:///nowhere.sock", **environment}
    given["PATH"] = given["PATH"] if path is None else str(path)
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=given, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def poor(tmp_path: Path) -> Path:
    """A PATH on which nothing has to be installed, and no Docker engine can be started."""
    for name in ("git", "dockerd", "iptables", "busybox", "apparmor_parser"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "sh").symlink_to(shutil.which("sh") or "/bin/sh")
    return tmp_path


@pytest.mark.parametrize("code", [0, 1, 7])
def test_its_exit_code_is_that_of_the_command(poor: Path, code: int) -> None:
    done = run("-m", "tests.support.environment", "sh", "-c", f"exit {code}", path=poor, CONVEYOR_REQUIRE="")
    assert done.returncode == code, done.stderr
    assert "no Docker engine answers and none can be started here" in done.stderr


def test_what_it_runs_keeps_what_it_compiles(poor: Path) -> None:
    command = ("-m", "tests.support.environment", "sh", "-c", 'echo "[$PYTHONDONTWRITEBYTECODE]"')
    assert run(*command, path=poor, CONVEYOR_REQUIRE="", PYTHONDONTWRITEBYTECODE="1").stdout == "[]\n"


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -2 $$", 130)])
def test_beside_an_engine_of_its_own_too(script: str, code: int) -> None:
    program = (
        "import os, sys; from tests.support.environment import StopSignals;"
        "sys.exit(StopSignals().run(['sh', '-c', sys.argv[1]], dict(os.environ)))"
    )
    assert run("-c", program, script).returncode == code


def test_a_word_nobody_knows_is_refused(poor: Path) -> None:
    for command in (("-m", "tests.support.environment", "sh", "-c", "echo ran"), ("-m", "pytest", "--collect-only")):
        done = run(*command, "tests/unit/test_environment.py", path=poor, CONVEYOR_REQUIRE="docker,dokcer")
        assert done.returncode not in (0, 1), done.stdout
        assert "CONVEYOR_REQUIRE names dokcer; it knows docker, go, qemu, mount" in done.stderr
        assert "ran" not in done.stdout


def test_a_part_that_is_missing_fails_the_run(poor: Path) -> None:
    (poor / "go").symlink_to(poor / "git")
    done = run("-m", "pytest", "--collect-only", __file__, path=poor, CONVEYOR_REQUIRE=" Docker, go,qemu,mount,")
    assert done.returncode not in (0, 1), done.stdout
    assert "CONVEYOR_REQUIRE names what is missing here: docker, qemu, mount\n" in done.stderr
    assert run("-m", "pytest", "--collect-only", __file__, path=poor, CONVEYOR_REQUIRE="go").returncode == 0


def test_a_test_without_its_part_skips_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVEYOR_REQUIRE", "docker")
    with pytest.raises(pytest.skip.Exception, match="no go: not today"):
        required.missing("go", "not today")
    with pytest.raises(pytest.fail.Exception, match="docker is required: not today"):
        required.missing("docker", "not today")
