"""The command tree: its help teaches, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import entry_points
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from conveyor_runtime import __version__
from conveyor_runtime.cli import app as app_module
from conveyor_runtime.cli import installed
from conveyor_runtime.cli.app import app
from conveyor_runtime.cli.errors import program
from conveyor_runtime.orchestra.docker.demo_image import root_of, static_busybox
from conveyor_runtime.reconcile import loader

#: Loaded by commands that use them, never by others. (Typer itself loads pydantic, to convert parameters.)
HEAVY = (
    "asyncio",
    "docker",
    "fastapi",
    "httpx2",
    "nats",
    "rich",
    "ruamel",
    "starlette",
    "uvicorn",
    "uvloop",
)


def _help(*path: str) -> str:
    found = CliRunner().invoke(app, [*path, "--help"])
    assert found.exit_code == 0, found.output
    return found.output


def _commands() -> list[str]:
    root = typer.main.get_command(app)
    return root.list_commands(typer.Context(root))  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    "arguments", [("--version",), ("--help",), ("builder", "--help"), ("driver", "list"), ("get",)]
)
def test_nothing_heavy_is_loaded(arguments: tuple[str, ...]) -> None:
    heavy = (*HEAVY, "importlib.metadata") if arguments == ("--help",) else HEAVY
    code = (
        "import sys; sys.argv = ['conveyor', *sys.argv[1:]]\n"
        "from conveyor_runtime.cli.app import run\n"
        "run()\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_driver_process_loads_neither_server_nor_docker() -> None:
    never = ("fastapi", "uvicorn", "jsonschema_rs", "docker", "rich", "conveyor_runtime.api", "conveyor_runtime.engine")
    code = (
        "import sys, conveyor_runtime.daemon.worker, drivers.builder\n"
        f"print([name for name in {never!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("command", _commands())
def test_help_teaches_with_an_example(command: str) -> None:
    text = _help(command)
    if command == "driver":
        text = _help("driver", "run") + _help("driver", "list")
    if command == "dlq":
        text = "".join(_help("dlq", verb) for verb in ("list", "show", "redrive", "purge"))
    example = re.search(r"Examples?: conveyor (\S+)", text)
    assert example, text
    assert example[1] == command


def test_the_root_help_names_exit_codes_and_drivers() -> None:
    text = " ".join(_help().split())
    for part in (
        "3 the run was cancelled",
        "4 it timed out",
        "5 the server cannot be reached",
        "builder",
        "git-cloner",
    ):
        assert part in text


@pytest.mark.parametrize("command", _commands())
def test_the_list_says_of_a_command_what_it_says_of_itself(command: str) -> None:
    root = typer.main.get_command(app)
    made = root.get_command(typer.Context(root), command)  # type: ignore[attr-defined]
    own = made.get_short_help_str(200)
    assert re.search(rf"^ +{command} +{re.escape(own)}$", _help(), re.MULTILINE)


def test_a_short_help_is_never_cut_off() -> None:
    assert "..." not in _help().partition("Commands:")[2]


def test_the_drivers_group_is_the_loaders() -> None:
    assert loader.GROUP == installed.GROUP
    assert installed.driver_names() == sorted(loader.installed_drivers())


def test_drivers_are_found_wherever_packages_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "[odd]" / "mine-1.0.dist-info"
    folder.mkdir(parents=True)
    told = "[console_scripts]\nx = y:z\n\n[conveyor.drivers]\n# none = a:b\nmine = mine:driver\nmine-too=mine:second\n"
    (folder / "entry_points.txt").write_text(told)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "nothing"), str(folder.parent)])
    assert installed.driver_names.__wrapped__() == sorted(it.name for it in entry_points(group=installed.GROUP))
    assert installed.driver_names.__wrapped__() == ["mine", "mine-too"]


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["conveyor", "--version"])
    assert app_module.run() == 0
    assert capsys.readouterr().out == f"conveyor {__version__}\n"


def test_an_unexpected_error_is_one_line_unless_debugging(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("oops")

    monkeypatch.setattr(app_module, "app", fail)
    monkeypatch.delenv("CONVEYOR_DEBUG", raising=False)
    assert app_module.run() == 1
    assert capsys.readouterr().err.startswith("error: RuntimeError: oops: ")
    monkeypatch.setenv("CONVEYOR_DEBUG", "1")
    with pytest.raises(RuntimeError):
        app_module.run()


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app_module, "app", interrupt)
    assert app_module.run() == 130


def test_the_root_of_the_demo_image(tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_text("#!/bin/sh\nprintf 'busybox\\nls\\nsh\\n'\n")
    busybox.chmod(0o755)
    with tarfile.open(fileobj=BytesIO(root_of(busybox))) as tar:
        members = {it.name: it for it in tar}
    assert members["bin/sh"].linkname == "busybox"
    assert members["bin/busybox"].isreg()
    assert members["tmp"].mode == 0o1777
    found = static_busybox()
    assert found is None or found.is_file()


def _conveyor(*arguments: str, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "conveyor_runtime", *arguments]
    return subprocess.run(command, cwd=folder, stderr=subprocess.PIPE, text=True, check=False, **options)


def test_a_driver_that_is_no_python_is_pointed_at(tmp_path: Path) -> None:
    (tmp_path / "greeter.py").write_text("def x(:\n")
    done = _conveyor("driver", "run", "greeter.py:driver", "--nats-url", "nats://h", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: greeter.py:1: SyntaxError: invalid syntax\n"


def test_a_wrong_choice_is_said_in_plain_words(tmp_path: Path) -> None:
    done = _conveyor("get", "runs", "-o", "xml", folder=tmp_path)
    assert done.returncode == 2
    assert "'xml' is not one of" in done.stderr
    assert "Value error" not in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        done = _conveyor("driver", "list", "-o", "json", folder=tmp_path, stdout=gone)
    assert (done.returncode, done.stderr) == (141, "")


def test_hints_print_the_command_as_it_was_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    called = tmp_path / "bin" / "conveyor"
    called.parent.mkdir()
    called.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(called), "doctor"])
    assert program() == str(called)
    (tmp_path / "conveyor").touch(0o755)  # another installation
    assert program() == str(called)
    monkeypatch.setenv("PATH", str(called.parent))
    assert program() == "conveyor"
