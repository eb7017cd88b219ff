"""Two engines that are asked for opposite things at once: one of them wins, and both say what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from conveyor_runtime.engine import Draft
from conveyor_runtime.engine.acceptance import Acceptance
from conveyor_runtime.errors import Conflict
from conveyor_runtime.models import ResourceRecord, RunRecord
from tests.support.cluster import Cluster, cluster_on


@pytest.fixture
async def other(cluster: Cluster) -> AsyncIterator[Cluster]:
    async with cluster_on(cluster.url) as second:
        yield second


@pytest.fixture
def overtaken(other: Cluster, monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[object]:
    """What is put in here is awaited between the other engine's reading of a record and its writing."""
    waiting: asyncio.Queue[object] = asyncio.Queue()
    write = Acceptance.write

    async def late(self: Acceptance, run: RunRecord | None, *puts: object) -> int | None:
        if self._engine is other.engine and not waiting.empty():
            await waiting.get_nowait()  # type: ignore[misc]
        return await write(self, run, *puts)  # type: ignore[arg-type]

    monkeypatch.setattr(Acceptance, "write", late)
    return waiting


async def record(cluster: Cluster) -> ResourceRecord | None:
    found = await cluster.state.resource("thing", "one")
    return found.record if found else None


async def runs_of(cluster: Cluster) -> list[tuple[str, str]]:
    """Event and state of every run stored."""
    stored = await cluster.state.store.list("run.")
    return sorted((run.event, run.status.value) for run in (RunRecord.model_validate_json(it.value) for it in stored))


async def posted(cluster: Cluster, **spec: object) -> None:
    """The resource is there, and nothing of it is under way."""
    await cluster.post("thing", "one", "idle", **spec)
    await cluster.until(lambda: (it := cluster.state.view.resource("thing", "one")) and it.record.active is None)


async def nothing_to_do(cluster: Cluster) -> None:
    await cluster.define("thing")
    await cluster.intake.update(Draft("pipeline", "idle", {"resource": "thing", "steps": []}), create_missing=True)


async def test_a_delete_that_is_overtaken_by_a_change_is_done_after_it(
    cluster: Cluster, other: Cluster, overtaken: asyncio.Queue[object]
) -> None:
    await nothing_to_do(cluster)
    await posted(cluster, v=1)
    overtaken.put_nowait(cluster.put("thing", "one", "idle", v=2))
    deleted = await other.intake.delete("thing", "one")
    await cluster.gone("thing", "one")
    assert await record(cluster) is None
    await cluster.ended(deleted.run_id)
    assert await runs_of(cluster) == [("create", "Succeeded"), ("delete", "Succeeded"), ("update", "Succeeded")]


async def test_of_two_that_create_one_name_one_is_refused(
    cluster: Cluster, other: Cluster, overtaken: asyncio.Queue[object]
) -> None:
    await nothing_to_do(cluster)
    overtaken.put_nowait(cluster.post("thing", "one", "idle", who="first"))
    with pytest.raises(Conflict):
        await other.post("thing", "one", "idle", who="second")
    stored = await record(cluster)
    assert stored is not None and stored.spec == {"who": "first"}
    assert await runs_of(cluster) == [("create", "Succeeded")]


async def test_of_two_changes_both_are_stored(
    cluster: Cluster, other: Cluster, overtaken: asyncio.Queue[object]
) -> None:
    await nothing_to_do(cluster)
    await posted(cluster, v=1)
    overtaken.put_nowait(cluster.put("thing", "one", "idle", v=2))
    second = await other.put("thing", "one", "idle", v=3)
    stored = await record(cluster)
    assert stored is not None and (stored.spec, stored.generation) == ({"v": 3}, 3)
    assert second.record.generation == 3
    versions = [await cluster.state.version(stored.id, number) for number in (1, 2)]
    assert [found and found.record.spec for found in versions] == [{"v": 1}, {"v": 2}]
