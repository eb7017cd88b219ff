"""The read model: current, honest about how current, and never set back by what is old."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from conveyor_runtime.errors import BusUnavailable
from conveyor_runtime.models import Claim, DriverRecord, RunRecord, Status
from conveyor_runtime.store import Change, MemoryStore, Put, State, View, Write, keys

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def run_of(run_id: str, status: Status = Status.RUNNING) -> RunRecord:
    return RunRecord(run_id=run_id, type="t", name="n", event="create", generation=1, status=status, created_at=NOW)


def run_change(run_id: str, revision: int, status: Status = Status.RUNNING) -> Change:
    return Change(keys.run(run_id), run_of(run_id, status).encode(), revision)


CLAIM = Claim(instance="i", at=NOW)


@pytest.fixture
def view() -> View:
    return View(MemoryStore())


def test_live_runs_are_those_that_are_not_terminal(view: View) -> None:
    for revision, status in enumerate(Status, 1):
        view.apply(run_change(status.value, revision, status))
    assert view.live_runs == {status.value for status in Status if not status.terminal}
    view.apply(run_change("Running", 100, Status.FAILED))
    view.apply(Change(keys.run("Pending"), None, 101))
    assert not {"Running", "Pending"} & view.live_runs
    assert view.run("Pending") is None


def test_what_is_older_than_known_changes_nothing(view: View) -> None:
    told: list[tuple[str, tuple[str, ...]]] = []
    view.apply(run_change("r", 5, Status.SUCCEEDED))
    view.listen(lambda kind, parts: told.append((kind, parts)))
    view.apply(run_change("r", 4))
    view.apply(run_change("r", 5))
    view.apply(Change(keys.run("r"), None, 3))
    found = view.run("r")
    assert found is not None and found.record.status is Status.SUCCEEDED and told == []


def test_a_deleted_key_is_not_brought_back_by_an_older_write(view: View) -> None:
    view.apply(run_change("r", 1))
    view.apply(Change(keys.run("r"), None, 3))
    view.apply(run_change("r", 2))
    assert view.run("r") is None and view.live_runs == set()
    view.apply(run_change("r", 4))
    assert view.run("r") is not None


def test_claims_are_found_by_their_run(view: View) -> None:
    view.apply(Change(keys.claim("r", "s", 1, 0), CLAIM.encode(), 1))
    view.apply(Change(keys.claim("r", "s", 1, 1), CLAIM.encode(), 2))
    view.apply(Change(keys.claim("q", "s", 2, 0), CLAIM.encode(), 3))
    assert sorted(numbers for numbers, _ in view.claims_of("r")) == [("s", 1, 0), ("s", 1, 1)]
    for takeover, revision in ((0, 4), (1, 5)):
        view.apply(Change(keys.claim("r", "s", 1, takeover), None, revision))
    assert list(view.claims_of("r")) == [] and view.claim("r", "s", 1, 1) is None
    assert [numbers for numbers, _ in view.claims_of("q")] == [("s", 2, 0)]


@pytest.mark.parametrize(
    "key", ["run", "run.a.b", "claim.a", "claim.a.b.c.d", "resource.a", "what.ever", "version.i.1", "resource.a.b.c"]
)
def test_a_key_somebody_else_made_does_no_harm(view: View, key: str) -> None:
    view.apply(Change(key, b"\xff not ours", 1))
    assert view.run_ids() == [] and list(view.resources()) == [] and list(view.claims_of("a")) == []


@pytest.mark.parametrize("key", ["resource.a.b", "claim.a.b.1.0", "instance.i", "driver.d"])
def test_what_cannot_be_decoded_is_set_aside_with_one_warning(
    view: View, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    for revision, value in enumerate((b'{"of": "a newer version"}', b"\xff not ours"), 1):
        view.apply(Change(key, value, revision))
        for _ in range(2):
            assert not [*view.resources(), *view.claims_of("a"), *view.instances()]
            assert not view.drivers() and view.resource("a", "b") is None
            assert view.claim("a", "b", 1, 0) is None and view.instance("i") is None and view.driver("d") is None
        assert len(caplog.records) == revision and f"{key} (revision {revision})" in caplog.text


def test_a_run_with_a_status_nobody_knows_is_set_aside(view: View) -> None:
    view.apply(Change("run.0192-newer", run_of("r").encode().replace(b'"Running"', b'"Paused"'), 1))
    assert view.run("0192-newer") is None
    view.apply(run_change("0192-newer", 2))
    assert view.run("0192-newer") is not None


def test_a_status_of_a_newer_version_is_a_live_run(view: View) -> None:
    view.apply(Change("run.r", run_of("r").encode().replace(b'"Running"', b'"Dreaming"'), 1))
    assert view.live_runs == {"r"}


def test_runs_are_listed_newest_first(view: View) -> None:
    for revision, run_id in enumerate(("b", "c", "a"), 1):
        view.apply(run_change(run_id, revision))
    assert view.run_ids() == ["c", "b", "a"]


async def test_it_follows_the_store() -> None:
    store = MemoryStore()
    await store.commit([Write(keys.driver("d"), DriverRecord(name="d", types=("t",)).encode())])
    view = View(store)
    await view.start()
    assert list(view.drivers()) == ["d"]
    [revision] = await store.commit([Write(keys.driver("d"), None)])
    await view.wait_for(revision)
    assert view.drivers() == {}
    await view.stop()


async def test_our_own_writes_are_seen_at_once_and_told_once() -> None:
    """Rule 22."""
    store = MemoryStore()
    view = View(store)
    await view.start()
    told: list[str] = []
    view.listen(lambda kind, parts: told.append(kind))
    [revision] = await State(store, view).commit(Put(keys.run("r"), run_of("r"), 0))
    assert view.run("r") is not None and view.committed == revision
    await view.wait_for(None)
    assert told == ["run"]
    await view.stop()


async def test_a_list_waits_for_the_revision_asked_for() -> None:
    """Rule 22."""
    store = MemoryStore()
    view = View(store)
    await view.start()
    waiting = asyncio.create_task(view.wait_for(2))
    await store.commit([Write("run.a", run_of("a").encode())])
    await asyncio.sleep(0)
    assert not waiting.done()
    await store.commit([Write("version.i.1", b"{}")])
    await waiting
    assert view.revision == 2
    await view.stop()


@pytest.mark.looptime
async def test_a_list_that_cannot_be_current_is_refused_after_two_seconds(view: View) -> None:
    """Rule 22."""
    view.committed = 7
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with pytest.raises(BusUnavailable, match="not current"):
        await view.wait_for(None)
    assert loop.time() - begun == pytest.approx(2.0)
    await view.wait_for(0)


async def test_a_watch_that_fails_is_said() -> None:
    class Broken(MemoryStore):
        def watch(self) -> Any:
            raise RuntimeError("no stream")

    with pytest.raises(RuntimeError, match="no stream"):
        await View(Broken()).start()


async def test_who_this_installation_is_is_decided_once() -> None:
    store = MemoryStore()
    metas = await asyncio.gather(*(State(store).ensure_meta() for _ in range(5)))
    assert len({meta.installation for meta in metas}) == 1


def test_only_the_runs_that_ended_last_stay_decoded(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conveyor_runtime.store.view._ENDED_DECODED", 2)
    for revision, run_id in enumerate(("a", "b", "c", "live"), 1):
        record = run_of(run_id, Status.RUNNING if run_id == "live" else Status.FAILED)
        view.apply(Change(keys.run(run_id), record.encode(), revision), record)
    found = {run_id: view.run(run_id) for run_id in view.run_ids()}
    assert [run_id for run_id, it in found.items() if it is not None and it._record is not None] == ["live", "c", "b"]
    assert found["a"] is not None and found["a"].look() == run_of("a", Status.FAILED)
    assert found["a"]._record is None, "who looks at many keeps none"


def test_a_run_that_is_written_anew_is_found_by_what_it_is_now(view: View) -> None:
    seen = []
    statuses = (Status.ACCEPTED, Status.RUNNING, Status.RUNNING, Status.FAILED, Status.RUNNING)
    for revision, status in enumerate(statuses, 1):
        view.apply(Change(keys.run("r"), run_of("r", status).encode(), revision))
        seen.append((set(view.live_runs), view.runs.before([("status", "Failed")], "", 9)))
    assert seen == [({"r"}, [])] * 3 + [(set(), ["r"]), ({"r"}, [])]


def test_a_run_of_a_newer_version_stays_set_aside_when_it_is_written_anew(view: View) -> None:
    strange = run_of("r").encode().replace(b"Running", b"Pondering")
    for revision in (1, 2):
        view.apply(Change(keys.run("r"), strange, revision))
        assert view.run("r") is None
