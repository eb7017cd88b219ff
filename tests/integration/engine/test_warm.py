"""Which driver's processes keep sandboxes ready, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conveyor_runtime.config import BackendSettings, DriverSettings, WarmSettings
from conveyor_runtime.daemon.worker import connected_manager
from conveyor_runtime.reconcile import Driver
from drivers import builder, container_start
from tests.conftest import StartServer
from tests.contract.conftest import until
from tests.support.cluster import cluster_on
from tests.support.docker import busybox, docker_engine

__all__ = ["busybox", "docker_engine"]

pytestmark = pytest.mark.docker


async def test_who_starts_sandboxes_keeps_some_while_it_lives(
    start_server: StartServer, busybox: str, docker_engine: Any, tmp_path: Path
) -> None:
    warm = BackendSettings(native_root=tmp_path / "native", warm=WarmSettings(images={busybox: 1}))
    settings = DriverSettings(backend="docker", backends=warm)
    server = await start_server()

    def ready(installation: str) -> list[Any]:
        labels = [f"conveyor.installation={installation}", "conveyor.keeper"]
        found = docker_engine.containers(all=True, filters={"label": labels})
        return list(found)

    async def is_keeping(driver: Driver) -> bool:
        async with connected_manager(driver, server.url, settings) as manager:
            backend: Any = manager._deps.orchestra.default  # type: ignore[union-attr]
            if backend._warm is None:
                return False
            await until(lambda: ready(manager._deps.installation))
            return True

    async with cluster_on(server.url) as cluster:
        assert await is_keeping(container_start.driver)
        assert not await is_keeping(builder.driver)
        meta = await cluster.state.meta()
        assert meta is not None
        assert ready(meta.installation) == []
