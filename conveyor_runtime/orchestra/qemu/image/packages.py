"""Debian packages by way of the machine's own apt: its sources, its keys, its proxy. Nothing is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from conveyor_runtime.errors import BackendError, BackendUnavailable, ConfigError

__all__ = ["Package", "Say", "candidates", "check_tools", "current_kernel", "fetch", "libraries_of", "unpack"]

Say = Callable[[str], None]
"""Takes one line for a person to read."""

_TOOLS = ("apt-get", "apt-cache", "dpkg-deb")
_URI = re.compile(r"'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+)(?: (?P<digest>\S+))?")


@dataclass(frozen=True)
class Package:
    """One version of a package, as apt would fetch it. `size` is in bytes."""

    file: str
    size: int
    digest: str


def check_tools() -> None:
    """Raise `ConfigError` where there is no apt."""
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if absent:
        raise ConfigError(
            f"a guest image is made from Debian packages, and there is no {', '.join(absent)} here; "
            "make it on a Debian machine and copy its directory"
        )


def candidates(names: Sequence[str]) -> list[Package]:
    """The versions apt would fetch, without fetching. Raises `ConfigError` for a package that its lists do not have."""
    said = _run(["apt-get", "download", "--print-uris", *names], f"apt does not know {', '.join(names)}")
    found = [_URI.match(line) for line in said.splitlines()]
    return sorted((Package(m["file"], int(m["size"]), m["digest"] or "") for m in found if m), key=lambda it: it.file)


def current_kernel() -> str:
    """The package that the metapackage `linux-image-amd64` names today."""
    said = _run(["apt-cache", "depends", "linux-image-amd64"], "apt does not know linux-image-amd64")
    match = re.search(r"Depends: (linux-image-\S+)", said)
    if match is None:
        raise ConfigError("apt does not know linux-image-amd64; this needs a Debian amd64 archive and apt-get update")
    return match[1]


def libraries_of(name: str) -> list[str]:
    """The packages of shared libraries that a package needs, down to libc."""
    no = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    said = _run(["apt-cache", "depends", "--recurse", *no, name], f"apt does not know {name}")
    return sorted(set(re.findall(r"^(lib(?!.*perl)\S+)$", said, re.MULTILINE)))


def fetch(packages: Sequence[Package], names: Sequence[str], into: Path, say: Say) -> list[Path]:
    """Download what is not there yet, checked by apt. Raises `BackendUnavailable` when the archive does not answer."""
    missing = [package for package in packages if not _is_whole(into / package.file, package)]
    if missing:
        megabytes = sum(package.size for package in missing) / 1e6
        say(f"downloading {len(missing)} Debian packages, {megabytes:.0f} MB")
        try:
            _run(["apt-get", "-qq", "-o", "Acquire::Retries=2", "download", *names], "apt cannot download", cwd=into)
        except ConfigError as error:
            raise BackendUnavailable(str(error)) from error
    broken = [package.file for package in packages if not _is_whole(into / package.file, package)]
    if broken:
        raise BackendUnavailable(f"apt did not bring {', '.join(broken)}; run apt-get update and try again")
    return [into / package.file for package in packages]


def unpack(packages: Sequence[Path], into: Path) -> None:
    """Put the files of packages below a directory, running none of their scripts."""
    for package in packages:
        done = subprocess.run(["dpkg-deb", "-x", package, into], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BackendError(f"{package.name} cannot be unpacked: {done.stderr.strip()}")


def _is_whole(file: Path, package: Package) -> bool:
    return file.is_file() and file.stat().st_size == package.size


def _run(command: list[str], problem: str, cwd: Path | None = None) -> str:
    env = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env)
    if done.returncode != 0:
        reason = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        raise ConfigError(f"{problem}: {' '.join(reason[:3])} (apt-get update may help)")
    return done.stdout
