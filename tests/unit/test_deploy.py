"""What `deploy/` says holds: its names and options exist, and the programs that read it accept it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from conveyor_runtime.bus.server_setup import find_server
from conveyor_runtime.cli.app import app

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
CLI: Any = typer.main.get_command(app)
CONTEXT = CLI.make_context("conveyor", ["version"], resilient_parsing=True)


def text_of(*names: str) -> str:
    return "\n".join((DEPLOY / name).read_text() for name in names)


def commands() -> dict[str, Any]:
    """All commands of the command line, the drivers' among them; "" is the command line itself."""
    return {"": CLI, **{name: CLI.get_command(CONTEXT, name) for name in CLI.list_commands(CONTEXT)}}


def settings(command: Any) -> set[str]:
    """The environment variables of a command and of those below it."""
    below = getattr(command, "commands", {}).values()
    return {parameter.envvar for parameter in command.params}.union(*map(settings, below))


def called() -> Iterator[tuple[str, list[str]]]:
    """Each `conveyor` command in `deploy/`, with its options."""
    text = text_of("Dockerfile", *(unit.name for unit in UNITS)).replace("\\\n#", "")
    for name, rest in re.findall(r"\bconveyor (%i|[a-z][a-z-]*\b(?!\s*[,.]))([^\n`]*)", text):
        yield name, re.findall(r"(?<!\S)--[a-z-]+", rest)
    [entry] = re.findall(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)
    [command] = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert json.loads(entry)[-1] == "conveyor"
    name, *rest = json.loads(command)
    yield name, rest


def test_every_command_and_option_exists() -> None:
    known = commands()
    seen = set()
    for name, options in called():
        for one in ["builder", "git-cloner"] if name == "%i" else [name]:
            assert one in known, f"conveyor {name}"
            spelled = {option for parameter in known[one].params for option in parameter.opts}
            assert set(options) <= spelled, f"conveyor {name} {options}"
        seen.add(name)
    assert seen >= {"serve", "%i", "builder"}, "or this test has lost its eyes"


def test_every_setting_exists() -> None:
    names = set().union(*map(settings, commands().values()))
    of_the_server = set(re.findall(r"\$(CONVEYOR_\w+)", text_of("nats-server.conf")))
    assert of_the_server == {"CONVEYOR_NATS_USER", "CONVEYOR_NATS_PASSWORD"}
    used = set(re.findall(r"\bCONVEYOR_[A-Z_]+\b", text_of(*os.listdir(DEPLOY))))
    assert used - of_the_server <= names
    given = set(re.findall(r"^(CONVEYOR_\w+)=", text_of("conveyor.env.example"), re.MULTILINE))
    assert given >= of_the_server | {"CONVEYOR_NATS_URL"}


def check_conf(**environment: str) -> subprocess.CompletedProcess[str]:
    server = asyncio.run(find_server())
    return subprocess.run(
        [server, "-t", "-c", str(DEPLOY / "nats-server.conf")],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_nats_server_accepts_its_configuration() -> None:
    example = dict(re.findall(r"^(CONVEYOR_NATS_\w+)=(.*)$", text_of("conveyor.env.example"), re.MULTILINE))
    done = check_conf(**example)
    assert done.returncode == 0, done.stderr
    assert check_conf().returncode != 0, "without its password it must not start"
    user, password = example["CONVEYOR_NATS_USER"], example["CONVEYOR_NATS_PASSWORD"]
    assert example["CONVEYOR_NATS_URL"].startswith(f"nats://{user}:{password}@")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    units = []
    for unit in UNITS:
        copy = tmp_path / unit.name.replace("@.", "@builder.")
        text = unit.read_text()
        assert re.findall(r"^ExecStart=/opt/conveyor/bin/(\S+)", text, re.MULTILINE)
        copy.write_text(text.replace("/opt/conveyor/bin/", f"{Path(sys.executable).parent}/"))
        units.append(str(copy))
    assert len(units) == 3
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "conveyor" in line]
    assert (done.returncode, said) == (0, [])
