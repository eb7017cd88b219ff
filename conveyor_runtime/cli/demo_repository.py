"""The repository the demo builds: the checkout this package or the current directory lies in."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import conveyor_runtime
from conveyor_runtime.cli.errors import CliError

__all__ = ["Repository", "find_repository"]

_SKIPPED = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache", ".conveyor", ".hypothesis")


@dataclass(frozen=True)
class Repository:
    """A git repository on this machine. `note` is what a person should know about it."""

    path: Path
    commit: str
    note: str = ""


def find_repository(scratch: Path) -> Repository:
    """The checkout, or if there is none a repository made in `scratch` of the files. Raises CliError without git."""
    if shutil.which("git") is None:
        raise CliError("git", "there is none on PATH", "install it: the demo clones a repository")
    package = Path(conveyor_runtime.__file__).resolve().parent
    for place in (package, Path.cwd()):
        top = _git(place, "rev-parse", "--show-toplevel")
        commit = _git(place, "rev-parse", "--verify", "HEAD^{commit}")
        if top and commit:
            changed = _git(Path(top), "status", "--porcelain", "--untracked-files=no")
            note = "changes that are not committed are not part of it" if changed else ""
            return Repository(Path(top), commit, note)
    return _make(package, scratch / "repository")


def _make(package: Path, target: Path) -> Repository:
    root = package.parent
    if (root / "pyproject.toml").is_file():
        shutil.copytree(root, target, ignore=_SKIPPED)
    else:
        # Installed beside other packages: only ours.
        for name in ("conveyor_runtime", "drivers", "pipelines"):
            if (root / name).is_dir():
                shutil.copytree(root / name, target / name, ignore=_SKIPPED)
    _git(target, "init", "--quiet")
    _git(target, "add", "--all", "--force")
    _git(target, "commit", "--quiet", "--message", "The files as they were unpacked")
    commit = _git(target, "rev-parse", "--verify", "HEAD^{commit}")
    if not commit:
        raise CliError(str(target), "git could not make a repository of the unpacked files", "run `git init` in them")
    return Repository(target, commit, f"{root} is no git checkout, so a temporary repository was made of its files")


def _git(place: Path, *arguments: str) -> str:
    """What git prints; empty if it fails. Neither the user's configuration nor their hooks have a say."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    for who in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{who}_NAME": "conveyor demo", f"GIT_{who}_EMAIL": "demo@localhost"}
    command = ["git", "-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null", "-C", str(place), *arguments]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""
