"""The life of one delivery, step by step, over a store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import orjson
import pytest

from conveyor_runtime.bus import Bus, Committer, Delivery
from conveyor_runtime.config import DriverSettings
from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.models import Claim, DriverResult, PlannedStep, RunRecord, Status, StepState
from conveyor_runtime.reconcile import Driver, DriverLogger
from conveyor_runtime.reconcile.deps import Deps
from conveyor_runtime.reconcile.dispatch import Dispatch
from conveyor_runtime.reconcile.invoke import Stop, Threads
from conveyor_runtime.reconcile.jobs import Jobs
from conveyor_runtime.reconcile.lease import Lease
from conveyor_runtime.store import MemoryStore, Put, State, keys
from tests.unit.reconcile.fakes import RUN, FakeBus, FakeCommitter, FakeDelivery

pytestmark = pytest.mark.looptime
NUMBERS = (RUN, "s", 1, 0)


@dataclass(eq=False)
class Told(FakeDelivery):
    said: list[str] = field(default_factory=list)

    async def ack(self) -> None:
        self.said.append("ack")

    async def nak(self, delay: float | None = None) -> None:
        self.said.append("nak")

    async def term(self, reason: str) -> None:
        self.said.append("term")

    def in_progress(self) -> None:
        self.said.append("busy")


class Worker:
    """One worker process without a bus."""

    def __init__(self, reconcile: Callable[..., Any], **driver: Any) -> None:
        self.time = 0.0
        self.state = State(MemoryStore())
        self.results, self.logs = FakeCommitter(), FakeCommitter()
        self.lease = Lease(self.state, "d", (), 1, lambda: self.time)
        self.dispatch = Dispatch(
            Deps(
                driver=Driver("d", ("thing",), reconcile, **driver),
                settings=DriverSettings(kill_grace=1.0),
                installation="i",
                bus=cast(Bus, FakeBus()),
                state=self.state,
                results=cast(Committer, self.results),
                logs=cast(Committer, self.logs),
                lease=self.lease,
                executor=Threads(1),
                node="n",
            ),
            Jobs(self.state, self.lease),
        )

    async def start(self, status: Status = Status.RUNNING) -> None:
        """Hold the lease, with the run the dispatches are of."""
        await self.lease.renew()
        run = RunRecord(
            run_id=RUN, type="thing", name="one", event="create", generation=1, status=status,
            plan=(PlannedStep(id="s", driver="d"),), steps={"s": StepState(attempt=1, issue=1)},
            created_at=datetime.now(UTC),
        )  # fmt: skip
        await self.state.commit(Put(keys.run(RUN), run))

    async def handle(self, *, event: str = "create", age: timedelta = timedelta(0)) -> list[str]:
        payload = orjson.dumps({"name": "one", "resource": "thing", "spec": {}}).decode()
        body = orjson.dumps({"event": event, "payload": payload, "id": "m", "run_id": RUN})
        headers = {"Cv-Run": RUN, "Cv-Step": "s", "Cv-Attempt": "1", "Cv-Takeover": "0"}
        delivery = Told(body, headers, age=age.total_seconds())
        await self.dispatch.handle(cast(Delivery, delivery))
        return [said for said in delivery.said if said != "busy"]

    async def claim(self) -> Claim | None:
        found = await self.state.claim(*NUMBERS)
        return found.record if found else None


async def fine(payload: str, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
    logger.info("works")
    return DriverResult(success=True)


async def forever(payload: str, event: str, run_id: str, logger: DriverLogger) -> None:
    logger.info("last words")
    await asyncio.Event().wait()


async def test_claimed_worked_on_reported_and_acknowledged() -> None:
    """Rules 7 and 9."""
    worker = Worker(fine)
    await worker.start()
    assert await worker.handle() == ["ack"]
    assert worker.logs.texts == ["works"]
    [result] = worker.results.lines
    assert result["driverresult"]["success"] and worker.results.stored[0].msg_id == f"{RUN}.s.1.0"
    claim = await worker.claim()
    assert claim is not None and (claim.instance, claim.node, claim.given_up) == (worker.lease.id, "n", False)
    assert not worker.dispatch.jobs


async def test_without_its_lease_it_claims_nothing() -> None:
    """Rule 12."""
    worker = Worker(fine)
    await worker.start()
    worker.time += 26
    assert await worker.handle() == ["nak"]
    assert await worker.claim() is None and worker.results.stored == []


async def test_a_claim_that_took_longer_than_the_lease_is_given_up_before_user_code() -> None:
    """Rule 12."""
    worker = Worker(fine)
    await worker.start()
    commit = worker.state.commit

    async def slow(*puts: Put, timeout: float = 10.0) -> list[int]:
        worker.time += 26
        return await commit(*puts, timeout=timeout)

    worker.state.commit = slow  # type: ignore[method-assign]
    assert await worker.handle() == ["nak"]
    claim = await worker.claim()
    assert claim is not None and claim.given_up and worker.logs.stored == [] and worker.results.stored == []


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("comes_back", [False, True])
async def test_a_claim_whose_answer_was_lost_is_given_up_though_its_dispatch_never_comes_back(
    stored: bool, comes_back: bool
) -> None:
    """Rule 7: others leave it to this living process, which may have no slot for long. One that was taken by then is
    not given up: its result may be on its way."""
    worker = Worker(fine)
    await worker.start()
    commit, read, claims = worker.state.commit, worker.state.claim, worker.dispatch.claims

    async def unanswered(*puts: Put, timeout: float = 10.0) -> list[int]:
        if stored:
            await commit(*puts, timeout=timeout)
        raise BusUnavailable("no answer")

    async def late(*numbers: Any) -> Any:
        worker.state.claim = read  # type: ignore[method-assign]
        if comes_back:
            assert await worker.handle() == ["nak" if stored else "ack"]
            return await read(*numbers)
        raise BusUnavailable("still away")

    worker.state.commit, worker.state.claim = unanswered, late  # type: ignore[method-assign, assignment]
    with pytest.raises(BusUnavailable):
        await worker.handle()
    worker.state.commit = commit  # type: ignore[method-assign]
    settling = asyncio.create_task(claims.settle())
    await asyncio.sleep(3)
    claim = await read(*NUMBERS)
    assert (claim is not None) is (stored or comes_back)
    assert claim is None or claim.record.given_up is stored
    settling.cancel()


@pytest.mark.parametrize(("age", "claimed"), [(timedelta(minutes=29), True), (timedelta(minutes=31), False)])
async def test_an_old_dispatch_is_checked_against_its_run_first(age: timedelta, claimed: bool) -> None:
    """Rule 7: the claims of a run that is over may be purged."""
    worker = Worker(fine)
    await worker.start(Status.SUCCEEDED)
    assert await worker.handle(age=age) == ["ack"]
    assert (await worker.claim() is not None) is claimed


async def test_an_event_nobody_asked_for_is_skipped() -> None:
    """Rule 4."""
    worker = Worker(fine)
    await worker.start()
    assert await worker.handle(event="delete") == ["ack"]
    assert worker.results.lines[0]["cv"]["status"] == "Skipped" and worker.logs.stored == []


async def test_one_redelivered_while_it_is_in_hand_is_not_started_twice() -> None:
    """Rule 7."""
    worker = Worker(forever)
    await worker.start()
    first = asyncio.create_task(worker.handle())
    await asyncio.sleep(1)
    assert await worker.handle() == ["nak"]
    claim = await worker.claim()
    assert claim is not None and not claim.given_up, "it is being worked on"
    worker.dispatch.jobs.stop(Stop.CANCEL)
    assert await first == ["ack"]


@pytest.mark.parametrize("why", [Stop.DRAIN, Stop.LEASE, Stop.STALE])
async def test_who_hands_over_stores_its_last_lines_and_gives_up(why: Stop) -> None:
    """Rules 7 and 19."""
    worker = Worker(forever)
    await worker.start()
    working = asyncio.create_task(worker.handle())
    while not any(job.invocation for job in worker.dispatch.jobs):
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    worker.dispatch.jobs.stop(why)
    assert await working == ["nak"]
    claim = await worker.claim()
    assert claim is not None and (claim.given_up, claim.why) == (True, why.value)
    assert worker.logs.texts == ["last words"] and worker.results.stored == []


async def test_long_work_shows_the_server_that_it_goes_on() -> None:
    worker = Worker(forever)
    await worker.start()
    body = orjson.dumps({"event": "create", "payload": '{"resource":"thing"}', "run_id": RUN})
    delivery = Told(body, {"Cv-Run": RUN, "Cv-Step": "s", "Cv-Attempt": "1"})
    working = asyncio.create_task(worker.dispatch.handle(cast(Delivery, delivery)))
    await asyncio.sleep(35)
    assert delivery.said == ["busy"] * 3
    worker.dispatch.jobs.stop(Stop.CANCEL)
    await working
