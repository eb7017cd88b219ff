"""Dead letters, put back in play."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from conveyor_runtime.bus.messages import next_by_subject
from conveyor_runtime.bus.streams import MESSAGES
from conveyor_runtime.engine import steps
from conveyor_runtime.engine.redrive import Redrive
from conveyor_runtime.errors import BusUnavailable, Conflict, NotFound
from conveyor_runtime.models import Resource
from conveyor_runtime.models.message import H_RESULT, H_RUN
from conveyor_runtime.reconcile import Driver, DriverLogger
from conveyor_runtime.store import keep_dead_letter
from conveyor_runtime.store.letters import Letter, Letters
from tests.integration.engine.test_queue import Gate
from tests.integration.engine.test_runs import recorder
from tests.support.cluster import Cluster


def redriver(cluster: Cluster) -> Redrive:
    return Redrive(cluster.engine, cluster.intake, cluster.bus)


async def letters(cluster: Cluster, count: int) -> list[Letter]:
    """The dead letters, once there are so many."""
    async with asyncio.timeout(10):
        while len(found := await Letters(cluster.bus).list(limit=100)) < count:
            await asyncio.sleep(0.02)
    return found


@pytest.fixture
def no_handover(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gives up an attempt makes a dead letter of its dispatch."""
    monkeypatch.setattr(steps, "MAX_HANDOVERS", 0)


async def given_up(cluster: Cluster, gate: Gate, event: str = "create") -> Letter:
    """The letter of the attempt that `gate` has been handed; its process is gone."""
    manager = next(it for it, _ in cluster.managers if it._driver is gate.driver)
    while (await gate.started.get())[1] != event:
        pass
    manager.drain()
    await cluster.stop(manager)
    [letter] = await letters(cluster, 1)
    assert letter.about.kind == "dispatch" and letter.about.reason == "handed over 0 times"
    return letter


@pytest.mark.usefixtures("no_handover")
async def test_a_step_of_an_open_run_has_another_attempt(cluster: Cluster) -> None:
    dead, other = Gate("dead"), Gate("other")
    calls: list[tuple[str, str]] = []
    await cluster.define("thing")
    await cluster.add(dead.driver)
    await cluster.add(other.driver)
    run_id = (await cluster.post("thing", "one")).run_id
    letter = await given_up(cluster, dead)
    assert (letter.about.run_id, letter.about.step, letter.about.attempt) == (run_id, "dead", 1)
    assert letter.about.subject == "drivers.dead.resources.thing"
    await cluster.until(lambda: cluster.run(run_id).steps[0].status == "Error")
    await cluster.add(recorder("dead", calls))
    done = await redriver(cluster).redrive(letter.about.id)
    assert (done.action, done.run_id) == ("reopened", run_id)
    await cluster.until(lambda: cluster.run(run_id).steps[0].status == "Succeeded")
    other.open.set()
    run = await cluster.ended(run_id)
    assert (run.status, [step.attempt for step in run.steps]) == ("Succeeded", [2, 1])
    assert calls == [("dead", "create")]
    with pytest.raises(NotFound, match="there is no dead letter"):
        await redriver(cluster).redrive(letter.about.id)


@pytest.mark.usefixtures("no_handover")
async def test_the_resource_of_an_ended_run_has_one_other_however_often_it_is_asked_for(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Gate("a")
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a")
    await cluster.add(dead.driver)
    run_id = (await cluster.post("thing", "one", "p")).run_id
    letter = await given_up(cluster, dead)
    assert (await cluster.ended(run_id)).status == "Error"
    calls: list[tuple[str, str]] = []
    await cluster.add(recorder("a", calls))

    async def crash(self: Letters, letter_id: int) -> bool:
        raise BusUnavailable("the process dies before it removes the letter")

    with monkeypatch.context() as patched:
        patched.setattr(Letters, "remove", crash)
        with pytest.raises(BusUnavailable):
            await redriver(cluster).redrive(letter.about.id)
    with pytest.raises(Conflict, match=r"has had run .* since"):
        await redriver(cluster).redrive(letter.about.id)
    newest = max(cluster.state.view.run_ids())
    assert newest != run_id and (await cluster.ended(newest)).status == "Succeeded"
    assert calls == [("a", "create")]


@pytest.mark.usefixtures("no_handover")
async def test_a_run_that_is_ending_is_let_end_first(cluster: Cluster) -> None:
    """I7: its `finally` steps have begun, and come last."""
    dead, last = Gate("a"), Gate("last")
    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a", finally_=("last",))
    await cluster.add(dead.driver)
    await cluster.add(last.driver)
    run_id = (await cluster.post("thing", "one", "p")).run_id
    letter = await given_up(cluster, dead)
    await last.started.get()
    with pytest.raises(Conflict, match="is still ending"):
        await redriver(cluster).redrive(letter.about.id)
    last.open.set()
    assert (await cluster.ended(run_id)).status == "Error"
    await cluster.add(recorder("a", []))
    done = await redriver(cluster).redrive(letter.about.id)
    assert done.action == "rerun" and (await cluster.ended(done.run_id)).status == "Succeeded"


@pytest.mark.usefixtures("no_handover")
async def test_a_delete_is_begun_again(cluster: Cluster) -> None:
    dead = Gate("a", events="*")
    await cluster.define("thing")
    await cluster.add(dead.driver)
    await cluster.post("thing", "one")
    run_id = (await cluster.intake.delete("thing", "one")).run_id
    letter = await given_up(cluster, dead, "delete")
    assert (await cluster.ended(run_id)).status == "Error"
    await cluster.add(recorder("a", [], events="*"))
    done = await redriver(cluster).redrive(letter.about.id)
    await cluster.gone("thing", "one")
    assert done.run_id != run_id and cluster.run(done.run_id).status == "Succeeded"


async def test_a_result_is_published_again_as_it_came(cluster: Cluster) -> None:
    headers = {H_RESULT: "1", H_RUN: "no-such-run"}
    await cluster.define("thing")
    run_id = (await cluster.post("thing", "one")).run_id
    headers[H_RUN] = run_id
    await cluster.bus.publish("pipelines.driver.result", b"{", msg_id="m", headers=headers)
    [letter] = await letters(cluster, 1)
    assert (letter.about.kind, letter.about.run_id, letter.data) == ("results", run_id, b"{")
    done = await redriver(cluster).redrive(letter.about.id)
    assert done.action == "published"
    async with asyncio.timeout(10):
        # Nobody can read it now either, so it comes back, under another id.
        while (found := await letters(cluster, 1))[0].about.id == letter.about.id:
            await asyncio.sleep(0.02)
    assert [(it.data, it.headers, it.about.subject) for it in found] == [(b"{", headers, "pipelines.driver.result")]


async def test_a_message_of_another_publisher_is_handed_over_again(cluster: Cluster) -> None:
    """Rule 18: it bears no attempt, so there is no step to reopen."""
    seen: list[str] = []

    async def reconcile(payload: Resource, event: str, run_id: str, logger: DriverLogger) -> None:
        seen.append(run_id)

    await cluster.define("thing")
    await cluster.add(Driver("a", ("thing",), reconcile))
    event = b'{"event":"create","payload":"{\\"resource\\":\\"thing\\",\\"name\\":\\"x\\"}","id":"1","run_id":"plain"}'
    for msg_id in ("one", "one"):
        await keep_dead_letter(
            cluster.bus, "dispatch", event, msg_id=msg_id, reason="test", subject="drivers.a.resources.thing"
        )
    [letter] = await letters(cluster, 1)
    assert (await redriver(cluster).redrive(letter.about.id)).action == "published"
    async with asyncio.timeout(10):
        while not seen:
            await asyncio.sleep(0.01)
    assert seen == ["plain"]


async def test_what_is_redriven_twice_is_published_once(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two who ask at once, and by a process that died before it removed the letter."""
    subject = "drivers.a.resources.thing"
    await keep_dead_letter(cluster.bus, "dispatch", b"{}", msg_id="one", reason="test", subject=subject)
    [letter] = await letters(cluster, 1)

    async def crash(self: Letters, letter_id: int) -> bool:
        raise BusUnavailable("the process dies before it removes the letter")

    with monkeypatch.context() as patched:
        patched.setattr(Letters, "remove", crash)
        with pytest.raises(BusUnavailable):
            await redriver(cluster).redrive(letter.about.id)
    assert (await redriver(cluster).redrive(letter.about.id)).action == "published"
    published = await next_by_subject(cluster.bus, MESSAGES, subject, 1)
    assert published is not None
    assert await next_by_subject(cluster.bus, MESSAGES, subject, published.seq + 1) is None
    assert await Letters(cluster.bus).list(limit=100) == []


async def test_what_was_cut_cannot_be_published_again(cluster: Cluster) -> None:
    await cluster.bus.publish("pipelines.driver.result", b"x" * (cluster.bus.max_payload - 200))
    [letter] = await letters(cluster, 1)
    assert letter.about.cut
    with pytest.raises(Conflict, match="too large"):
        await redriver(cluster).redrive(letter.about.id)
    assert len(await letters(cluster, 1)) == 1


async def test_those_before_a_time_are_purged_and_holes_do_not_matter(cluster: Cluster) -> None:
    store = Letters(cluster.bus)
    for number in range(9):
        await keep_dead_letter(cluster.bus, "results", b"x", msg_id=f"m{number}", reason="test", subject="s")
        await asyncio.sleep(0.002)
    found = await store.list(limit=100)
    assert [it.about.id for it in found] == list(range(1, 10))
    assert [it.about.id for it in await store.list(after=3, limit=2)] == [4, 5]
    for letter in (1, 5, 6, 9):
        assert await store.remove(letter)
    assert not await store.remove(5) and await store.get(5) is None
    assert await store.purge(found[0].about.time) == 0
    assert await store.purge(found[6].about.time) == 3
    assert [it.about.id for it in await store.list(limit=100)] == [7, 8]
    assert await store.purge(found[8].about.time + timedelta(days=1)) == 2
    assert await store.purge() == 0
