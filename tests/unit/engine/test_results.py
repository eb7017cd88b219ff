"""Results that cannot be taken in: none stays on the bus, none leaves its step open."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from conveyor_runtime.bus import PayloadTooLarge
from conveyor_runtime.engine import results
from conveyor_runtime.engine.plans import Fleet
from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.models import DriverRecord, PlannedStep, RunRecord, Status, StepResult, StepState
from conveyor_runtime.store import Put, Write, keys
from conveyor_runtime.store.base import Change
from tests.unit.engine.world import NOW, Watcher

DRIVERS = {"d": DriverRecord(name="d", types=("thing",)), "f": DriverRecord(name="f", types=("thing",), sdk="foreign")}
OPEN = StepState(attempt=1, issue=1, issued_at=NOW)
RUN = RunRecord(
    run_id="r", type="thing", name="one", event="create", generation=1, status=Status.RUNNING,
    plan=(PlannedStep(id="a", driver="d"), PlannedStep(id="b", driver="d"), PlannedStep(id="f", driver="f")),
    steps={"a": OPEN, "b": OPEN, "f": OPEN}, created_at=NOW,
)  # fmt: skip


class Bus:
    """Keeps dead letters."""

    max_payload = 1 << 20

    def __init__(self) -> None:
        self.letters: list[str] = []

    async def publish(self, subject: str, data: bytes, *, msg_id: str, headers: dict[str, str]) -> None:
        self.letters.append(headers["Cv-Reason"])


def delivery(body: bytes, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return SimpleNamespace(subject="pipelines.driver.result", data=body, headers=named, stream_seq=1)


def ours(step: str, **fields: Any) -> Any:
    result = StepResult(run_id="r", step=step, attempt=1, takeover=0, status=Status.SUCCEEDED, instance="i", **fields)
    return delivery(b'{"cv":' + result.encode() + b"}", Cv_Result="1", Cv_Run="r", Cv_Step=step)


async def fold(watcher: Watcher, bus: Bus, *deliveries: Any) -> RunRecord:
    await watcher.put(keys.run("r"), RUN)
    for driver in DRIVERS.values():
        await watcher.put(keys.driver(driver.name), driver)
    return await results.fold(watcher.transitions, cast(Any, bus), RUN, deliveries)


@pytest.fixture
def watcher() -> Watcher:
    return Watcher(Fleet(DRIVERS))


async def test_a_message_of_megabytes_is_cut(watcher: Watcher) -> None:
    metadata = {"cv.step": "f", "cv.attempt": "1"}
    said = {"success": False, "message": "x" * 2_000_000, "driver": "f"}
    event = {"event": "driver.result", "run_id": "r", "resource": {"metadata": metadata}, "driverresult": said}
    run = await fold(watcher, Bus(), delivery(orjson.dumps(event)), ours("a", message="y" * 2000), ours("b"))
    assert [len(run.steps[step].message) for step in "fa"] == [1000, 1000]
    assert run.status is Status.FAILED and len(run.reason) == 1000


async def test_a_result_that_can_never_be_stored_ends_its_step_and_no_other(watcher: Watcher, monkeypatch: Any) -> None:
    commit = watcher.state.commit

    async def refuse(*puts: Put, timeout: float = 10.0) -> list[int]:
        if any(b"poison" in put.record.encode() for put in puts if put.record is not None):
            raise PayloadTooLarge("too large")
        return await commit(*puts, timeout=timeout)

    monkeypatch.setattr(watcher.state, "commit", refuse)
    bus = Bus()
    run = await fold(watcher, bus, ours("a", data="poison"), ours("b"))
    assert (run.steps["a"].status, run.steps["b"].status) == (Status.ERROR, Status.SUCCEEDED)
    assert run.steps["a"].message == "its result cannot be stored: too large" == bus.letters[0]


async def test_a_result_is_not_dropped_because_this_engine_has_not_heard_yet_that_its_step_was_opened(
    watcher: Watcher,
) -> None:
    """Rule 10: another engine opened the step; only the store says whether a result is of use."""
    before = RUN.model_copy(update={"steps": {"b": OPEN}})
    await watcher.put(keys.run("r"), before)
    await watcher.view._store.commit([Write(keys.run("r"), RUN.encode())])
    known = watcher.view.run("r")
    assert known is not None and "a" not in known.record.steps, "this engine's view lags"
    run = await results.fold(watcher.transitions, cast(Any, Bus()), before, [ours("a")])
    stored = await watcher.state.run("r")
    assert stored is not None and stored.record.steps["a"].status is run.steps["a"].status is Status.SUCCEEDED


async def test_a_result_is_not_dropped_because_this_engine_hears_only_now_of_the_runs_beginning(
    watcher: Watcher,
) -> None:
    """Rule 10: what was read from the store is not followed by what the view hears late."""
    begun = RUN.model_copy(update={"status": Status.ACCEPTED, "steps": {}})
    [first] = await watcher.view._store.commit([Write(keys.run("r"), begun.encode())])
    await watcher.view._store.commit([Write(keys.run("r"), RUN.encode())])
    found = await watcher.transitions.find("r")
    assert found is not None
    watcher.view.apply(Change(keys.run("r"), begun.encode(), first))
    await results.fold(watcher.transitions, cast(Any, Bus()), found.record, [ours("a")])
    stored = await watcher.state.run("r")
    assert stored is not None and stored.record.steps["a"].status is Status.SUCCEEDED


async def test_a_result_the_bus_cannot_take_now_is_kept(watcher: Watcher, monkeypatch: Any) -> None:
    await watcher.put(keys.run("r"), RUN)

    async def refuse(*puts: Put, timeout: float = 10.0) -> list[int]:
        raise BusUnavailable("not now")

    monkeypatch.setattr(watcher.state, "commit", refuse)
    bus = Bus()
    with pytest.raises(BusUnavailable):
        await results.fold(watcher.transitions, cast(Any, bus), RUN, [ours("a")])
    assert bus.letters == []


@pytest.mark.parametrize("body", [b"no json", b"[]", b'{"cv":{"status":"Dreaming"}}'])
async def test_a_result_of_ours_nobody_can_read_ends_the_attempt_its_headers_name(
    watcher: Watcher, body: bytes
) -> None:
    bus = Bus()
    headers = {"Cv_Result": "1", "Cv_Run": "r", "Cv_Attempt": "1", "Cv_Takeover": "0"}
    unreadable = (delivery(body, **headers, Cv_Step="a"), delivery(body, **headers), delivery(body, Cv_Result="1"))
    run = await fold(watcher, bus, *unreadable)
    assert run.steps["a"].status is Status.ERROR and run.steps["b"].open and len(bus.letters) == 3
    assert run.steps["a"].message.startswith("its result cannot be read")
