from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from conveyor_runtime.bus import Bus, EmbeddedServer
from tests.support.cluster import Cluster, cluster_on


@pytest.fixture
async def cluster(bus: Bus, nats_server: EmbeddedServer) -> AsyncIterator[Cluster]:
    """A running engine on an empty bus."""
    async with cluster_on(nats_server.url) as cluster:
        yield cluster
