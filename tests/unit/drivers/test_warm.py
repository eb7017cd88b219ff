"""A run whose sandbox stood ready before it began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conveyor_runtime.config import BackendSettings, DriverSettings, WarmSettings
from conveyor_runtime.orchestra import Orchestra
from drivers.sandboxes import SANDBOX, run_namespace
from tests.contract.conftest import until
from tests.unit.drivers.conftest import Run

pytestmark = pytest.mark.docker


async def test_the_four_steps_in_one_that_stood_ready(busybox: str, docker_engine: Any, tmp_path: Path) -> None:
    settings = BackendSettings(native_root=tmp_path / "native", warm=WarmSettings(images={busybox: 1}))
    orchestra = await Orchestra.open("docker", settings)
    run = Run(orchestra, "docker", busybox, DriverSettings(kill_grace=0.3))

    def names() -> list[str]:
        found = docker_engine.containers(filters={"label": f"conveyor.installation={run.installation}"})
        return [it["Names"][0].lstrip("/") for it in found]

    try:
        orchestra.keep_warm(run.installation)
        await until(lambda: orchestra.default._warm._pool.ready(busybox))  # type: ignore[attr-defined]
        [name] = names()
        identity = docker_engine.inspect_container(name)["Id"]
        started = await run.step("container-start", limits={"memory": "64Mi"})
        assert started.data["containerID"] == identity
        assert docker_engine.inspect_container(identity)["Name"] == f"/{run_namespace(run.context('x'))}.{SANDBOX}"
        assert (await run.step("container-start", takeover=1)).data == started.data
        await run.step("builder", commands=["echo built > out", "cat out"])
        assert ("stdout", "built") in run.log.lines
        await run.step("container-stop")
        assert not [name for name in names() if name.startswith("cv-")]
        assert await orchestra.default.namespaces(run.installation) == []
    finally:
        await orchestra.close()
    assert names() == []
