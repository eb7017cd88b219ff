"""A run from its resource to its end, on a real bus."""

from __future__ import annotations

from typing import Any

import pytest

from conveyor_runtime.engine import Draft
from conveyor_runtime.errors import InvalidInput
from conveyor_runtime.models import DriverResult, Resource
from conveyor_runtime.reconcile import Driver, DriverLogger, RunContext
from tests.support.cluster import Cluster


def recorder(name: str, calls: list[tuple[str, str]], *types: str, **options: Any) -> Driver:
    """A driver that notes what it is handed."""

    async def reconcile(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
        logger.info(f"{name} works on {payload.name}")
        calls.append((name, event))
        return DriverResult(success=True, message="ok", data={"from": name})

    return Driver(name, types or ("thing",), reconcile, **options)


async def test_a_pipeline_runs_its_steps_in_order(cluster: Cluster) -> None:
    calls: list[tuple[str, str]] = []
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a", "b", "c", finally_=("z",))
    for name in "abcz":
        await cluster.add(recorder(name, calls))
    accepted = await cluster.post("thing", "one", "p", x=1)
    run = await cluster.ended(accepted.run_id)
    assert run.status == "Succeeded", run
    assert calls == [("a", "create"), ("b", "create"), ("c", "create"), ("z", "create")]
    assert [step.status for step in run.steps] == ["Succeeded"] * 4
    assert [line.message for line in await cluster.logs(run.run_id)] == [f"{name} works on one" for name in "abcz"]


async def test_later_steps_see_what_earlier_ones_reported(cluster: Cluster) -> None:
    seen: list[dict[str, str]] = []

    async def look(payload: Resource, event: str, run_id: str, logger: DriverLogger, context: RunContext) -> None:
        seen.append(payload.metadata)

    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a", "b")
    await cluster.add(recorder("a", []))
    await cluster.add(Driver("b", ("thing",), look))
    await cluster.ended((await cluster.post("thing", "one", "p")).run_id)
    assert '"from":"a"' in seen[0]["driverresults.a"]
    assert seen[0]["steps.a"] == '{"from":"a"}'
    assert seen[0]["version"] == "1"


@pytest.mark.parametrize("create_missing", [True, False])
@pytest.mark.parametrize(
    ("type_", "name", "pointer"), [("thing", "a b", "/name"), ("thing", "a.b", "/name"), ("no*", "one", "/resource")]
)
async def test_a_name_that_cannot_be_is_pointed_at_before_anything_is_looked_up(
    cluster: Cluster, type_: str, name: str, pointer: str, create_missing: bool
) -> None:
    with pytest.raises(InvalidInput) as raised:
        await cluster.intake.update(Draft(type_, name, {}), create_missing=create_missing)
    assert [problem.pointer for problem in raised.value.problems] == [pointer]
