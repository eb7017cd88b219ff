"""What becomes of dispatches that were worked off, and of those that nobody is there for."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from nats.aio.msg import Msg

from conveyor_runtime.bus import wire
from conveyor_runtime.bus.messages import delete_message
from conveyor_runtime.bus.streams import MESSAGES, consumer_info, stream_info
from conveyor_runtime.engine import foreign as foreign_module
from conveyor_runtime.engine import outtray
from conveyor_runtime.models import DriverResult
from conveyor_runtime.reconcile import Driver, DriverLogger
from tests.integration.engine.test_foreign import Foreign, foreign, noted
from tests.integration.engine.test_runs import recorder
from tests.support.cluster import Cluster

__all__ = ["foreign"]


async def stored(cluster: Cluster) -> dict[str, int]:
    """How many messages lie on each subject."""
    info = await stream_info(cluster.bus, MESSAGES, subjects=True)
    assert info is not None
    return dict(info["state"].get("subjects") or {})


async def worked_off(cluster: Cluster) -> None:
    async with asyncio.timeout(5):
        while await cluster.dispatches_waiting():
            await asyncio.sleep(0.01)


async def test_the_sweep_throws_away_what_was_acknowledged_and_keeps_what_waits(cluster: Cluster) -> None:
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a", "b")
    await cluster.add(recorder("a", [], direct=False))
    absent = await cluster.add(recorder("b", [], direct=False))
    assert (await cluster.ended((await cluster.post("thing", "one", "p")).run_id)).status == "Succeeded"
    await cluster.stop(absent)
    await cluster.post("thing", "two", "p")
    await cluster.until(lambda: cluster.state.view.driver("b") is not None)
    async with asyncio.timeout(5):
        while (await stored(cluster)).get("drivers.b.resources.thing") != 2:
            await asyncio.sleep(0.01)
    await cluster.sweep.sweep()
    assert await stored(cluster) == {"drivers.b.resources.thing": 1}
    await cluster.add(recorder("b", [], direct=False))
    await worked_off(cluster)
    await cluster.sweep.sweep()
    assert await stored(cluster) == {}


async def test_what_no_consumer_is_there_for_goes(cluster: Cluster) -> None:
    await cluster.add(recorder("a", []))
    await cluster.bus.publish("resources.nobody", b"{}")
    await cluster.bus.publish("events.any", b"{}")
    assert len(await stored(cluster)) == 2
    await cluster.sweep.sweep()
    assert await stored(cluster) == {}


async def test_behind_one_that_takes_long_the_records_tell_what_is_over(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outtray, "MOST_BEHIND", 5)
    monkeypatch.setattr(outtray, "_AT_ONCE", 2)
    hold, began = asyncio.Event(), asyncio.Event()

    async def reconcile(payload: str, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
        if run_id == first:
            began.set()
            await hold.wait()
        return DriverResult(success=True)

    await cluster.define("thing")
    await cluster.add(Driver("a", ("thing",), reconcile), concurrency=2)
    first = (await cluster.post("thing", "long")).run_id
    await began.wait()

    async def some(count: int, names: str) -> None:
        for number in range(count):
            accepted = await cluster.post("thing", f"{names}{number}")
            assert (await cluster.ended(accepted.run_id)).status == "Succeeded"
        async with asyncio.timeout(5):
            while await cluster.dispatches_waiting() != 1:
                await asyncio.sleep(0.01)

    await some(3, "few")
    await cluster.bus.publish("drivers.a.resources.thing", b'{"payload":"{}"}')  # bears no attempt
    await asyncio.wait_for(until_letter(cluster), 5)
    await cluster.sweep.sweep()
    assert await stored(cluster) == {"drivers.a.resources.thing": 5}, "not worth it yet"
    await some(2, "more")
    await cluster.sweep.sweep()
    assert await stored(cluster) == {"drivers.a.resources.thing": 2}, "the long one, and what bears no attempt"
    hold.set()
    assert (await cluster.ended(first)).status == "Succeeded"
    await worked_off(cluster)
    await cluster.sweep.sweep()
    assert await stored(cluster) == {}


async def until_letter(cluster: Cluster) -> None:
    while (info := await stream_info(cluster.bus, "cv-dlq")) is None or not info["state"]["messages"]:
        await asyncio.sleep(0.01)


async def test_a_foreign_driver_that_takes_it_while_it_is_taken_back_is_waited_for(
    cluster: Cluster, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 17: the message may be deleted in the moment after it was handed out."""
    sdk = await foreign("afar")
    sdk.hold.clear()

    async def too_late(*args: object) -> bool:
        sdk.start()
        await sdk.taken.get()
        return await delete_message(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(foreign_module, "delete_message", too_late)
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "afar")
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await noted(cluster, run_id, "afar")
    await cluster.intake.cancel(run_id, who="test", why="enough")
    await cluster.until(lambda: cluster.state.view.run(run_id).record.steps["afar"].due is not None)  # type: ignore[union-attr]
    assert cluster.run(run_id).status == "Cancelling"
    sdk.hold.set()
    assert (await cluster.ended(run_id)).steps[0].status == "Succeeded"


async def test_a_foreign_dispatch_that_waits_is_found_again_long_after_it_was_issued(
    cluster: Cluster, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 17: by then the server tells duplicates no more, and behind what was worked off it is looked for."""
    sdk = await foreign("afar")
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "afar")
    sdk.start()
    assert (await cluster.ended((await cluster.post("thing", "before", "p")).run_id)).status == "Succeeded"
    await sdk.stop()
    monkeypatch.setattr(foreign_module, "_SURELY_TOLD", timedelta(0))
    run_id = (await cluster.post("thing", "one", "p")).run_id
    await noted(cluster, run_id, "afar")
    assert await cluster.dispatches_waiting() == 1
    sdk.start()
    assert (await cluster.ended(run_id)).status == "Succeeded"


async def test_a_foreign_driver_may_hold_what_it_has_not_acknowledged(cluster: Cluster, foreign: Foreign) -> None:
    """Rule 17: its client fetches ahead; the time of a step begins when the driver takes it out of that buffer."""
    sdk = await foreign("afar")
    info = await consumer_info(cluster.bus, MESSAGES, "afar")
    assert info is not None
    body = {"stream_name": MESSAGES, "config": {**info["config"], "max_ack_pending": 10}, "action": "update"}
    await cluster.bus.api(f"CONSUMER.CREATE.{MESSAGES}.afar", body)
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "afar")
    runs = [(await cluster.post("thing", name, "p")).run_id for name in ("one", "two")]
    for run_id in runs:
        await noted(cluster, run_id, "afar")
    inbox, fetched = sdk.bus.new_inbox(), asyncio.Queue[Msg]()
    unsubscribe = await sdk.bus.subscribe_core(inbox, fetched.put_nowait)
    request = f"$JS.API.CONSUMER.MSG.NEXT.{MESSAGES}.afar"
    sdk.bus.send(wire.assemble(request, b"", b'{"batch":2,"expires":20000000000}', inbox))
    first, _ = [await asyncio.wait_for(fetched.get(), 5) for _ in runs]

    def begun(run_id: str) -> bool:
        found = cluster.state.view.run(run_id)
        return found is not None and found.record.steps["afar"].due is not None

    await asyncio.sleep(0.3)  # several looks
    assert not any(map(begun, runs))
    await sdk.bus.request(first.reply, b"+ACK")
    await cluster.until(lambda: any(map(begun, runs)))
    await asyncio.sleep(0.3)
    assert sum(map(begun, runs)) == 1
    await unsubscribe()
