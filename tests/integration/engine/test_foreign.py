"""A driver built on Conveyor's own SDK, as it behaves on the wire, in the middle of our runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import orjson
import pytest

from conveyor_runtime.bus import Bus, EmbeddedServer
from conveyor_runtime.bus.streams import DUPLICATE_WINDOW, MESSAGES
from conveyor_runtime.errors import ConfigError
from conveyor_runtime.models import RunRecord, utc_now
from tests.integration.engine.test_runs import recorder
from tests.support.cluster import Cluster


class ForeignSdk:
    """Known by name only, one message at a time, acknowledged before it is worked on."""

    def __init__(self, bus: Bus, name: str, type_: str = "thing") -> None:
        self.bus, self.name, self.type = bus, name, type_
        self.taken: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.hold = asyncio.Event()
        self.hold.set()
        self.success = True
        self._work: asyncio.Task[None] | None = None

    async def appear(self) -> None:
        """Create the consumer as that SDK does: no durable name, no inactive threshold, both filters."""
        config = {
            "name": self.name,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "max_ack_pending": 1,
            "filter_subjects": [f"resources.{self.type}", f"drivers.{self.name}.resources.{self.type}"],
        }
        body = {"stream_name": "messages", "config": config, "action": ""}
        await self.bus.api(f"CONSUMER.CREATE.messages.{self.name}", body)

    async def vanish(self) -> None:
        await self.stop()
        await self.bus.api(f"CONSUMER.DELETE.messages.{self.name}")

    def start(self) -> None:
        self._work = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        if self._work:
            self._work.cancel()
            await asyncio.wait({self._work})
            self._work = None

    async def _loop(self) -> None:
        inbox, queue = self.bus.new_inbox(), asyncio.Queue[Any]()
        unsubscribe = await self.bus.subscribe_core(inbox, queue.put_nowait)
        try:
            while True:
                request = orjson.dumps({"batch": 1, "expires": 25 * 10**9})
                from conveyor_runtime.bus import wire

                self.bus.send(wire.assemble(f"$JS.API.CONSUMER.MSG.NEXT.messages.{self.name}", b"", request, inbox))
                msg = await queue.get()
                if msg.reply:
                    await self.bus.request(msg.reply, b"+ACK")
                    await self._reconcile(orjson.loads(msg.data))
        finally:
            await unsubscribe()

    async def _reconcile(self, message: dict[str, Any]) -> None:
        self.taken.put_nowait(message)
        line = {"runid": message["run_id"], "driver": self.name, "pipeline": "", "timestamp": "1795253061"}
        await self.bus.publish(f"logs.{message['run_id']}", orjson.dumps({**line, "message": "from afar"}))
        await self.hold.wait()
        await self.answer(message)

    async def answer(self, message: dict[str, Any]) -> None:
        said = {"success": self.success, "message": "foreign", "data": {"n": 1}, "driver": self.name}
        event = {
            "event": "driver.result",
            "run_id": message["run_id"],
            "resource": orjson.loads(message["payload"]),
            "driverresult": said,
        }
        await self.bus.publish("pipelines.driver.result", orjson.dumps(event))


Foreign = Callable[[str], Awaitable[ForeignSdk]]


@pytest.fixture
async def foreign(nats_server: EmbeddedServer, cluster: Cluster) -> AsyncIterator[Foreign]:
    made: list[ForeignSdk] = []

    async def make(name: str) -> ForeignSdk:
        sdk = ForeignSdk(await Bus.connect(nats_server.url, name=name), name)
        made.append(sdk)
        await sdk.appear()
        await known(cluster, name)
        return sdk

    yield make
    for sdk in made:
        await sdk.stop()
        await sdk.bus.close()


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conveyor_runtime.engine.engine.LOOK_PERIOD", 0.05)


async def known(cluster: Cluster, name: str, *, there: bool = True) -> None:
    async with asyncio.timeout(5):
        while (name in cluster.engine.foreign.present) is not there:
            await asyncio.sleep(0.01)


async def waiting(cluster: Cluster, count: int) -> None:
    """Until so many dispatches wait for drivers."""
    async with asyncio.timeout(5):
        while await cluster.dispatches_waiting() != count:
            await asyncio.sleep(0.01)


async def noted(cluster: Cluster, run_id: str, step: str) -> None:
    def look() -> bool:
        found = cluster.state.view.run(run_id)
        return found is not None and bool(found.record.steps[step].foreign_seq)

    await cluster.until(look)


async def test_it_serves_a_step_between_two_of_ours(cluster: Cluster, foreign: Foreign) -> None:
    """Rule 17."""
    calls: list[tuple[str, str]] = []
    sdk = await foreign("afar")
    sdk.start()
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a", "afar", "b", finally_=("z",))
    for name in "abz":
        await cluster.add(recorder(name, calls, direct=False))
    run = await cluster.ended((await cluster.post("thing", "one", "p", x=1)).run_id)
    assert (run.status, [step.status for step in run.steps]) == ("Succeeded", ["Succeeded"] * 4)
    assert [name for name, _ in calls] == ["a", "b", "z"]
    message = await sdk.taken.get()
    payload = orjson.loads(message["payload"])
    assert payload["spec"] == {"x": 1} and orjson.loads(payload["metadata"]["driverresults.a"])["data"] == {"from": "a"}
    assert sdk.taken.empty() and run.steps[1].data == {"n": 1}
    assert [line.message for line in await cluster.logs(run.run_id)][1] == "from afar"
    assert run.steps[1].attempt == 1 and run.steps[1].message == "foreign"


async def test_it_is_handed_a_direct_run(cluster: Cluster, foreign: Foreign) -> None:
    """Rule 4."""
    sdk = await foreign("afar")
    sdk.start()
    await cluster.define("thing")
    run = await cluster.ended((await cluster.post("thing", "one")).run_id)
    assert (run.status, [step.id for step in run.steps]) == ("Succeeded", ["afar"])
    assert sdk.taken.qsize() == 1


async def test_its_failure_fails_the_run_without_another_try(cluster: Cluster, foreign: Foreign) -> None:
    """Rule 17."""
    sdk = await foreign("afar")
    sdk.success = False
    sdk.start()
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "afar")
    run = await cluster.ended((await cluster.post("thing", "one", "p")).run_id)
    assert (run.status, run.reason, run.steps[0].attempt) == ("Failed", "step afar: foreign", 1)
    assert sdk.taken.qsize() == 1


async def test_cancelled_while_its_message_waits_it_is_never_handed_over(cluster: Cluster, foreign: Foreign) -> None:
    """Rule 17."""
    sdk = await foreign("afar")
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "afar")
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await waiting(cluster, 1)
    await noted(cluster, run_id, "afar")
    await cluster.intake.cancel(run_id, who="test", why="enough")
    assert (await cluster.ended(run_id)).status == "Cancelled"
    await waiting(cluster, 0)
    sdk.start()
    again = await cluster.ended((await cluster.put("thing", "one", "p", x=1)).run_id)
    assert again.status == "Succeeded" and sdk.taken.qsize() == 1


async def test_what_it_does_not_take_in_time_it_is_never_handed(cluster: Cluster, foreign: Foreign) -> None:
    """Rules 6 and 17: as long as the message waits, it can be taken back."""
    sdk = await foreign("afar")
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "afar", queue_timeout=0.3)
    run_id = (await cluster.post("thing", "one", "p")).run_id
    run = await cluster.ended(run_id)
    assert (run.status, run.reason) == ("TimedOut", "step afar: no worker took it within its queue_timeout of 0.3 s")
    await waiting(cluster, 0)
    sdk.start()
    again = await cluster.ended((await cluster.put("thing", "one", "p", x=1)).run_id)
    assert again.status == "Succeeded" and sdk.taken.qsize() == 1


async def test_cancelled_after_it_was_taken_its_result_is_waited_for(cluster: Cluster, foreign: Foreign) -> None:
    """Rule 17."""
    sdk = await foreign("afar")
    sdk.hold.clear()
    sdk.start()
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "afar", "after")
    await cluster.add(recorder("after", [], direct=False))
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await sdk.taken.get()
    await cluster.intake.cancel(run_id, who="test", why="enough")
    await cluster.until(lambda: cluster.state.view.run(run_id).record.steps["afar"].due is not None)  # type: ignore[union-attr]
    assert cluster.run(run_id).status == "Cancelling"
    sdk.hold.set()
    run = await cluster.ended(run_id)
    assert (run.status, [step.status for step in run.steps]) == ("Cancelled", ["Succeeded", "Skipped"])
    assert run.steps[0].started_at is not None


async def test_its_timeout_begins_when_it_has_taken_the_message(cluster: Cluster, foreign: Foreign) -> None:
    """Rule 17."""
    sdk = await foreign("afar")
    sdk.hold.clear()
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "afar", timeout=0.3)
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await noted(cluster, run_id, "afar")
    await asyncio.sleep(0.5)
    assert not cluster.run(run_id).status.terminal, "waiting for a driver is not the step's timeout"
    sdk.start()
    message = await sdk.taken.get()
    run = await cluster.ended(run_id)
    assert (run.status, run.reason) == ("TimedOut", "step afar: no result came within its timeout")
    await sdk.answer(message)
    again = await cluster.put("thing", "one", None, x=2)
    sdk.hold.set()
    await cluster.ended(again.run_id)
    assert cluster.run(run_id).status == "TimedOut", "a late result changes nothing"


async def test_without_its_consumer_nothing_is_published_until_it_is_back(cluster: Cluster, foreign: Foreign) -> None:
    """Rule 17."""
    sdk = await foreign("afar")
    await sdk.vanish()
    await known(cluster, "afar", there=False)
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "afar")
    run_id = (await cluster.post("thing", "one", "p")).run_id
    found = cluster.state.view.run(run_id)
    assert found is not None and found.record.steps["afar"].issue == 0 and cluster.run(run_id).status == "Pending"
    await sdk.appear()
    sdk.start()
    assert (await cluster.ended(run_id)).status == "Succeeded"


async def test_a_driver_of_ours_is_refused_its_name(cluster: Cluster, foreign: Foreign) -> None:
    """Rule 17."""
    await foreign("afar")
    with pytest.raises(ConfigError, match="built on another SDK has a consumer"):
        await cluster.add(recorder("afar", []))
    cluster.managers.pop()


async def test_a_plain_event_is_worked_on_and_its_result_dropped(cluster: Cluster) -> None:
    """Rule 18."""
    calls: list[tuple[str, str]] = []
    await cluster.add(recorder("a", calls))
    payload = orjson.dumps({"name": "one", "resource": "thing", "metadata": {"version": "1"}, "spec": {}}).decode()
    seen: asyncio.Queue[Any] = asyncio.Queue()
    unsubscribe = await cluster.bus.subscribe_core("pipelines.driver.result", seen.put_nowait)
    event = {"event": "create", "payload": payload, "id": "m", "run_id": "not-of-ours"}
    await cluster.bus.publish("resources.thing", orjson.dumps(event))
    async with asyncio.timeout(5):
        answer = orjson.loads((await seen.get()).data)
        assert answer["driverresult"]["success"] and "cv" not in answer and answer["resource"]["name"] == "one"
        while await cluster.dispatches_waiting():
            await asyncio.sleep(0.01)
        while await cluster.results_waiting():
            await asyncio.sleep(0.01)
    assert calls == [("a", "create")] and await cluster.state.store.list("claim.") == []
    assert await cluster.state.run("not-of-ours") is None
    await unsubscribe()


async def test_it_is_handed_one_message_per_attempt_however_often_that_is_published(
    cluster: Cluster, foreign: Foreign
) -> None:
    """Rule 17."""
    await foreign("afar")
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "afar")
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await noted(cluster, run_id, "afar")
    found = cluster.state.view.run(run_id)
    assert found is not None
    step, state = found.record.plan[0], found.record.steps["afar"]  # type: ignore[index]
    again = state.model_copy(update={"issue": 7, "takeover": 3})
    receipt = await cluster.engine.transitions.dispatcher.publish(found.record, step, again)
    assert receipt.duplicate
    await waiting(cluster, 1)


async def test_what_may_have_been_published_long_ago_is_not_published_again(cluster: Cluster, foreign: Foreign) -> None:
    """Rule 17: the server may no longer tell a duplicate, and whether it was taken nobody knows: it has its timeout."""
    await foreign("afar")
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "afar", timeout=900)
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await noted(cluster, run_id, "afar")
    published: list[str] = []
    unsubscribe = await cluster.bus.subscribe_core("drivers.afar.>", lambda msg: published.append(msg.subject))
    await cluster.bus.api(f"STREAM.PURGE.{MESSAGES}", {"filter": "drivers.afar.>"})

    def long_ago(run: RunRecord) -> RunRecord:
        """As the engine left it that noted the issue and died."""
        update = {"foreign_seq": None, "due": None, "issued_at": utc_now() - timedelta(seconds=DUPLICATE_WINDOW)}
        return run.model_copy(update={"steps": {"afar": run.steps["afar"].model_copy(update=update)}})

    run = await cluster.engine.transitions.change(run_id, long_ago)
    assert run is not None and run.steps["afar"].foreign_seq is None
    run = await cluster.until(lambda: _given_a_due_time(cluster, run_id))
    state = run.steps["afar"]
    assert (state.foreign_seq, published) == (0, [])
    assert timedelta(seconds=890) < state.due - utc_now() < timedelta(seconds=901)
    await unsubscribe()


def _given_a_due_time(cluster: Cluster, run_id: str) -> RunRecord | None:
    found = cluster.state.view.run(run_id)
    if found is None or (state := found.record.steps["afar"]).due is None or state.foreign_seq:
        return None
    return found.record
