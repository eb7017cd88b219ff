"""Whose containers may go: rules 15 and 20, as a table. Only a positive answer of the store counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.models import (
    ENGINE,
    Claim,
    PlannedStep,
    ResourceRecord,
    RunRecord,
    Status,
    StepState,
    run_made_at,
    utc_now,
)
from conveyor_runtime.orchestra import NamespaceInfo, Orchestra, Owner
from conveyor_runtime.reconcile.janitor import Janitor
from conveyor_runtime.store import MemoryStore, Put, State, keys
from tests.unit.reconcile.fakes import RUN

HERE, ELSEWHERE = "n1", "n2"


class Place:
    """A backend with one namespace in it, and what became of it."""

    name = "pretended"
    node = HERE

    def __init__(self, age: float, resource: str = "", epoch: str = "") -> None:
        created = utc_now() - timedelta(seconds=age)
        owner = Owner(installation="i", run_id=RUN, step="s", attempt=1, takeover=0, resource=resource, epoch=epoch)
        self._info = NamespaceInfo(ns="cv-i-x", run_id=RUN, created_at=created, owners=(owner,))
        self.closed: list[str] = []

    async def namespaces(self, installation: str) -> list[NamespaceInfo]:
        return [self._info]

    async def close_namespace(self, ns: str, *, grace: float = 10.0) -> None:
        self.closed.append(ns)


def run(status: Status, *, ended: float | None = None, attempt: int = 1, takeover: int = 0) -> RunRecord:
    finished: datetime | None = None if ended is None else utc_now() - timedelta(seconds=ended)
    return RunRecord(
        run_id=RUN,
        type="thing",
        name="one",
        event="create",
        generation=1,
        status=status,
        plan=(PlannedStep(id="s", driver="d"),),
        steps={"s": StepState(attempt=attempt, takeover=takeover)},
        created_at=utc_now(),
        finished_at=finished,
    )


@pytest.mark.parametrize(
    ("make", "claim", "age", "reaped"),
    [
        pytest.param(lambda: run(Status.RUNNING), None, 9999, False, id="its run lives"),
        pytest.param(lambda: run(Status.SUCCEEDED, ended=5), None, 9999, False, id="ended a moment ago"),
        pytest.param(lambda: run(Status.FAILED, ended=60), None, 9999, True, id="ended, grace over"),
        pytest.param(lambda: None, None, 10, False, id="unknown but young"),
        pytest.param(lambda: None, None, 120, True, id="unknown and old"),
        pytest.param(lambda: run(Status.RUNNING, takeover=1), (1, HERE), 9999, False, id="taken over here"),
        pytest.param(lambda: run(Status.RUNNING, takeover=1), (1, ELSEWHERE), 9999, True, id="taken over elsewhere"),
        pytest.param(lambda: run(Status.RUNNING, takeover=1), None, 9999, False, id="taken over by nobody yet"),
        pytest.param(lambda: run(Status.RUNNING, takeover=1), (1, None), 9999, False, id="claimed by the engine"),
    ],
)
async def test_what_is_reaped(
    make: Callable[[], RunRecord | None], claim: tuple[int, str | None] | None, age: float, reaped: bool
) -> None:
    state = State(MemoryStore())
    record = make()  # now, not when the table was read: its times are relative
    if record is not None:
        await state.commit(Put(keys.run(RUN), record))
    if claim is not None:
        takeover, node = claim
        holder = ENGINE if node is None else "somebody"
        await state.commit(
            Put(keys.claim(RUN, "s", 1, takeover), Claim(instance=holder, node=node or ELSEWHERE, at=utc_now()))
        )
    place = Place(age)
    await Janitor(state, cast(Orchestra, SimpleNamespace(backends=[place])), "i").round()
    assert place.closed == (["cv-i-x"] if reaped else [])


@pytest.mark.parametrize(
    ("resource", "age", "reaped"),
    [
        pytest.param("thing/one/id1", 9999, False, id="its resource is there, its run long over"),
        pytest.param("thing/one/id0", 9999, True, id="another resource has its name now"),
        pytest.param("thing/two/id1", 9999, True, id="its resource is gone"),
        pytest.param("thing/two/id1", 10, False, id="gone but young"),
    ],
)
async def test_services_live_with_their_resource(resource: str, age: float, reaped: bool) -> None:
    state = State(MemoryStore())
    record = ResourceRecord(id="id1", type="thing", name="one", created_at=utc_now(), updated_at=utc_now())
    ended = run(Status.SUCCEEDED, ended=9999)
    await state.commit(Put(keys.resource("thing", "one"), record), Put(keys.run(RUN), ended))
    place = Place(age, resource)
    await Janitor(state, cast(Orchestra, SimpleNamespace(backends=[place])), "i").round()
    assert place.closed == (["cv-i-x"] if reaped else [])


@pytest.mark.parametrize(("node", "reaped"), [(None, False), (HERE, False), (ELSEWHERE, True)])
async def test_a_service_lives_on_one_node_only(node: str | None, reaped: bool) -> None:
    """Rule 15."""
    state = State(MemoryStore())
    record = ResourceRecord(id="id1", type="thing", name="one", created_at=utc_now(), updated_at=utc_now(), node=node)
    await state.commit(Put(keys.resource("thing", "one"), record))
    place = Place(9999, "thing/one/id1")
    await Janitor(state, cast(Orchestra, SimpleNamespace(backends=[place])), "i").round()
    assert place.closed == (["cv-i-x"] if reaped else [])


@pytest.mark.parametrize(("ended", "over"), [(5, 25), (60, None)])
async def test_it_tells_when_a_grace_it_met_is_over(ended: float, over: float | None) -> None:
    state = State(MemoryStore())
    await state.commit(Put(keys.run(RUN), run(Status.FAILED, ended=ended)))
    janitor = Janitor(state, cast(Orchestra, SimpleNamespace(backends=[Place(9999)])), "i")
    for _ in range(2):
        found = await janitor.round()
        assert (found is None) is (over is None)
        if found is not None and over is not None:
            assert (found - utc_now()).total_seconds() == pytest.approx(over, abs=5)


async def test_nothing_is_reaped_while_the_store_cannot_tell() -> None:
    async def unreachable(run_id: str) -> Any:
        raise BusUnavailable("away")

    async def unreachable_resource(type_: str, name: str) -> Any:
        raise BusUnavailable("away")

    for place in (Place(9999), Place(9999, "thing/one/id1")):
        state = cast(State, SimpleNamespace(run=unreachable, resource=unreachable_resource))
        await Janitor(state, cast(Orchestra, SimpleNamespace(backends=[place])), "i").round()
        assert place.closed == []


@pytest.mark.parametrize("resource", ["", "thing/gone/id1"])
async def test_what_a_copy_of_the_store_made_is_the_copys(resource: str) -> None:
    """Rule 20: the copy of a store that goes on has runs that the store never heard of."""
    state = State(MemoryStore())
    meta = await state.ensure_meta()
    await state.commit(Put(keys.META, meta.model_copy(update={"former": ("e0",)})))
    for epoch, reaped in (("", True), ("e0", True), (meta.epoch, True), ("another", False)):
        place = Place(9999, resource, epoch)
        await Janitor(state, cast(Orchestra, SimpleNamespace(backends=[place])), "i").round()
        assert place.closed == (["cv-i-x"] if reaped else []), epoch


async def test_it_makes_its_first_round_at_once() -> None:
    """What a killed process left must not wait for the next minute."""
    looked = asyncio.Event()

    class Counted(Place):
        async def namespaces(self, installation: str) -> list[NamespaceInfo]:
            looked.set()
            return []

    janitor = Janitor(State(MemoryStore()), cast(Orchestra, SimpleNamespace(backends=[Counted(0)])), "i")
    task = asyncio.create_task(janitor.run())
    async with asyncio.timeout(2):
        await looked.wait()
    task.cancel()


@pytest.mark.parametrize("resource", ["", "thing/gone/id1"])
@pytest.mark.parametrize(("newer_by", "reaped"), [(-1, True), (1, False)])
async def test_what_is_newer_than_the_backup_a_store_came_from_may_be_the_originals(
    resource: str, newer_by: float, reaped: bool
) -> None:
    """Rule 20: a copy beside a running original knows nothing of its later runs, which is no positive answer."""
    made = run_made_at(RUN)
    assert made is not None
    state = State(MemoryStore())
    meta = await state.ensure_meta()
    backup_at = made - timedelta(seconds=newer_by)
    await state.commit(Put(keys.META, meta.model_copy(update={"backup_at": backup_at})))
    place = Place(9999, resource)
    await Janitor(state, cast(Orchestra, SimpleNamespace(backends=[place])), "i").round()
    assert place.closed == (["cv-i-x"] if reaped else [])
