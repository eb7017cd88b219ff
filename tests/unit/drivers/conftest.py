"""A driver's surroundings: real backends, a recorded log."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from conveyor_runtime.config import DriverSettings
from conveyor_runtime.models import DriverResult, Resource
from conveyor_runtime.orchestra import BackendSettings, Orchestra
from conveyor_runtime.reconcile import Driver, DriverLogger, RunContext
from conveyor_runtime.security.redaction import Redactor
from drivers import builder, container_start, container_stop, git_cloner
from tests.support.docker import busybox, docker_engine

__all__ = ["busybox", "docker_engine"]

DRIVERS = {module.driver.name: module.driver for module in (container_start, git_cloner, builder, container_stop)}


class RecordedLog:
    """What a DriverLogger would have stored: the stream and the redacted text of each line."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self._redactor = Redactor()

    def info(self, message: str, **labels: object) -> None:
        self.lines.append(("", self._redactor.mask(message)))

    async def line(self, text: str, *, stream: str = "stdout", level: str = "info") -> None:
        self.lines.append((stream, self._redactor.mask(text)))

    def redact(self, secret: str) -> None:
        self._redactor.add(secret)

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)


@dataclass
class Run:
    """One run: its steps are called by hand, and see each other's results as the engine would hand them on."""

    orchestra: Orchestra
    backend: str
    image: str | None
    settings: DriverSettings
    run_id: str = field(default_factory=lambda: f"run-{secrets.token_hex(4)}")
    installation: str = field(default_factory=lambda: f"t{secrets.token_hex(4)}")
    log: RecordedLog = field(default_factory=RecordedLog)
    metadata: dict[str, str] = field(default_factory=lambda: {"version": "1"})

    def context(self, driver: str, attempt: int = 1, takeover: int = 0) -> RunContext:
        return RunContext(
            run_id=self.run_id,
            step=driver,
            attempt=attempt,
            takeover=takeover,
            driver=driver,
            event="create",
            node=self.orchestra.default.node,
            installation=self.installation,
            settings=self.settings,
            orchestra_=self.orchestra,
        )

    async def step(
        self, name: str, attempt: int = 1, takeover: int = 0, context: RunContext | None = None, **spec: Any
    ) -> DriverResult:
        """Call a driver; spec is checked as the runtime does before user code."""
        driver: Driver = DRIVERS[name]
        found = {"repository": "https://example.org/r.git", "backend": self.backend, "image": self.image, **spec}
        base = {"name": "r", "resource": "ci-build", "metadata": self.metadata}
        payload = cast("type[Resource[Any]]", driver.payload_type)
        resource = payload.model_validate({**base, "spec": found})
        logger = cast(DriverLogger, self.log)
        context = context or self.context(name, attempt, takeover)
        result: DriverResult = await driver.reconcile(resource, "create", self.run_id, logger, context)
        stored = {**result.model_dump(), "driver": name}
        self.metadata = {**self.metadata, f"driverresults.{name}": json.dumps(stored)}
        return result

    def with_settings(self, **settings: Any) -> Run:
        return replace(self, settings=replace(self.settings, **settings))


@pytest.fixture(params=["native", pytest.param("docker", marks=pytest.mark.docker)])
async def run(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Run]:
    image = request.getfixturevalue("busybox") if request.param == "docker" else None
    orchestra = await Orchestra.open(request.param, BackendSettings(native_root=tmp_path / "native"))
    settings = DriverSettings(allow_file_repositories=True, kill_grace=0.3)
    found = Run(orchestra, request.param, image, settings)
    yield found
    await found.step("container-stop")
    await orchestra.close()


@pytest.fixture
async def started(run: Run) -> Run:
    await run.step("container-start")
    return run


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with two branches and a tag, three commits deep."""
    path = tmp_path / "repo.git"
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    for number in (1, 2, 3):
        (path / "file").write_text(f"{number}\n")
        (path / "run.sh").write_text("#!/bin/sh\necho built\n")
        (path / "run.sh").chmod(0o755)
        git(path, "add", ".")
        git(path, "commit", "-q", "-m", f"commit {number}")
        if number == 2:
            git(path, "tag", "-a", "v2", "-m", "second")
    git(path, "checkout", "-q", "-b", "side/way", "HEAD~2")
    (path / "side").write_text("side\n")
    git(path, "add", ".")
    git(path, "commit", "-q", "-m", "side")
    git(path, "checkout", "-q", "main")
    return path
