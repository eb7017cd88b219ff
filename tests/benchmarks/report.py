"""How benchmarks say what they measured: on stdout, and as rows of RESULTS.md."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from conveyor_runtime import __version__

RESULTS = Path(__file__).with_name("RESULTS.md")

_HEAD = """\
# Results

Every run of `make bench` appends here what it measured, newest last. Compare the ratios within a row: their parts
were measured in the same minutes, while two rows may come from busier and quieter hours. Where the load was above the
number of cores, others were at work on the machine, and the wall's clock says less than the CPU's.

| when | benchmark | setting | measured | machine and versions |
|---|---|---|---|---|
"""

_PACKAGES = ("nats-py", "uvloop", "faststream", "taskiq-nats")


def row(what: str, setting: str, of: str, figures: Mapping[str, float]) -> None:
    """One line of figures; `setting` says the durability, `always` or a sync interval, `of` how much was measured."""
    _introduce()
    text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    print(f"{what:<12} {setting:<8} {of}: {text}", flush=True)
    _keep(what, setting, f"{of}: " + "; ".join(f"{name} **{value:.4g}**" for name, value in figures.items()))


def goal(
    what: str, setting: str, of: str, name: str, measured: float, *, least: float = 0.0, most: float = 0.0
) -> None:
    """A goal of the project, what was measured, of how much, and whether that is enough."""
    met = measured >= least if least else measured <= most
    wanted = f">= {least:g}" if least else f"<= {most:g}"
    verdict = "met" if met else "NOT met"
    print(f"  goal {name}: {wanted}, measured {measured:.3g} of {of}: {verdict}", flush=True)
    _keep(what, setting, f"{of}: goal {name} {wanted}: **{measured:.3g}**, {verdict}")


def _keep(what: str, setting: str, text: str) -> None:
    if not RESULTS.exists():
        RESULTS.write_text(_HEAD)
    now, load = f"{datetime.now(UTC):%Y-%m-%d %H:%M}", f"load {os.getloadavg()[0]:.1f}"
    with RESULTS.open("a") as file:
        file.write(f"| {now} | {what} | {setting} | {text} | {load}; {place()} |\n")


@cache
def _introduce() -> None:
    print(place(), flush=True)


@cache
def place() -> str:
    """The machine, and the versions of what runs on it."""
    model = re.search(r"(?m)^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text())
    cores = len(os.sched_getaffinity(0))
    parts = [f"{model[1] if model else platform.machine()}, {cores} cores", f"python {platform.python_version()}"]
    said = subprocess.run(["nats-server", "--version"], env=_path(), capture_output=True, text=True).stdout
    parts.append(said.strip().replace(": v", " "))
    for package in _PACKAGES:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join([*parts, f"ours {__version__} {_commit()}"])


def _path() -> dict[str, str]:
    """With the server of our own environment first: the one that is run."""
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}


def _commit() -> str:
    git = ["git", "-C", str(RESULTS.parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip()
