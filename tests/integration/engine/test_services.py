"""What a driver leaves running for a resource is looked after where it runs, and only there."""

from __future__ import annotations

from conveyor_runtime.models import DriverResult, Resource
from conveyor_runtime.reconcile import Driver, DriverLogger, RunContext
from tests.support.cluster import Cluster


async def test_later_runs_come_to_the_node_of_the_service(cluster: Cluster) -> None:
    """Rule 5. There are two nodes, and one of them would be as good as the other."""
    seen: list[tuple[str, str]] = []

    async def reconcile(
        payload: Resource[dict[str, int]], event: str, run_id: str, logger: DriverLogger, context: RunContext
    ) -> DriverResult:
        seen.append((event, context.node))
        return DriverResult(success=True, stays=context.node if payload.spec["serves"] else None)

    await cluster.define("thing")
    for node in ("n1", "n2"):
        await cluster.add(Driver("d", ("thing",), reconcile, events="*", sandbox=True), node=node, concurrency=1)
    await cluster.ended((await cluster.post("thing", "one", serves=1)).run_id)
    [(_, home)] = seen
    for version in range(8):
        await cluster.ended((await cluster.put("thing", "one", serves=1, version=version)).run_id)
    assert seen == [("create", home), *[("update", home)] * 8]
    found = cluster.state.view.resource("thing", "one")
    assert found is not None and found.record.node == home
    await cluster.ended((await cluster.put("thing", "one", serves=0)).run_id)
    found = await cluster.state.resource("thing", "one")
    await cluster.until(lambda: cluster.state.view.resource("thing", "one").record.node is None)  # type: ignore[union-attr]
    assert seen[-1] == ("update", home), "where it is to be ended"
