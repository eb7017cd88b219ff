"""What a real Conveyor engine and its SDK put on the wire: we read all of it, and write the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from conveyor_runtime.bus import Bus, Committer
from conveyor_runtime.models import DriverMessage, LogLine, PipelineEvent, Resource, Status
from conveyor_runtime.reconcile.logger import DriverLogger
from conveyor_runtime.reconcile.outcome import Outcome
from conveyor_runtime.reconcile.publish import encode_result
from conveyor_runtime.reconcile.work import decode
from conveyor_runtime.store import Put
from tests.support.cluster import Cluster, cluster_on
from tests.unit.reconcile.fakes import FakeBus, FakeCommitter, delivery

CAPTURED: list[dict[str, str]] = orjson.loads((Path(__file__).parent / "data" / "messages.json").read_bytes())


def captured(*prefixes: str) -> list[dict[str, Any]]:
    return [orjson.loads(it["bytes"]) for it in CAPTURED if it["subject"].startswith(prefixes)]


@pytest.mark.parametrize("message", CAPTURED, ids=lambda message: message["subject"])
def test_every_message_is_read(message: dict[str, str]) -> None:
    subject, data = message["subject"], message["bytes"].encode()
    raw = orjson.loads(data)
    if subject.startswith("pipelines."):
        event = PipelineEvent.model_validate_json(data)
        assert (event.event, event.run_id, event.resource.name) == (
            raw["event"],
            raw["run_id"],
            raw["resource"]["name"],
        )
        assert event.driverresult.model_dump() == raw["driverresult"]
        assert event.resource.metadata == raw["resource"]["metadata"] and event.resource.spec == raw["resource"]["spec"]
    elif "logs." in subject:
        line = LogLine.model_validate_json(data)
        assert {name: getattr(line, name) for name in raw} == raw and line.at is not None
    else:
        parsed = DriverMessage.model_validate_json(data)
        assert parsed.model_dump() == raw
        if subject != "application":
            work = decode(delivery(data, subject=subject))
            assert work.plain and work.resource.resource == orjson.loads(raw["payload"])["resource"]


def shape(value: Any) -> Any:
    """Names and JSON types; maps that a user fills count as maps."""
    return {key: type(item).__name__ for key, item in value.items()}


def assert_like(ours: dict[str, Any], theirs: dict[str, Any], *, also: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    assert set(ours) - set(theirs) <= also, "a name they do not know"
    for name, kind in shape(theirs).items():
        assert name in ours and type(ours[name]).__name__ == kind, name


def test_what_we_log_has_their_fields_and_types() -> None:
    [theirs, *_] = captured("logs.")

    async def log() -> list[dict[str, Any]]:
        committer = FakeCommitter()
        logger = DriverLogger(
            cast(Bus, FakeBus()),
            cast(Committer, committer),
            run_id=theirs["runid"],
            driver="builder",
            step="s",
            attempt=1,
        )
        logger.info("line 0")
        await logger.flush()
        await logger.close()
        return committer.lines

    import asyncio

    [ours] = asyncio.run(log())
    also = {"time", "seq", "step", "attempt", "takeover", "level"}
    assert_like(ours, theirs, also=also)
    assert len(ours["timestamp"]) == len(theirs["timestamp"]), "unix seconds as a string"


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("theirs", captured("pipelines.driver.result"), ids=lambda it: it["driverresult"]["driver"])
def test_what_we_report_has_their_fields_and_types(theirs: dict[str, Any], plain: bool) -> None:
    headers = {} if plain else {"Cv-Run": theirs["run_id"], "Cv-Step": "s", "Cv-Attempt": "1", "Cv-Takeover": "0"}
    body = {
        "event": "create",
        "run_id": theirs["run_id"],
        "id": "m",
        "payload": orjson.dumps(theirs["resource"]).decode(),
    }
    work = decode(delivery(orjson.dumps(body), headers))
    said = theirs["driverresult"]
    status = Status.SUCCEEDED if said["success"] else Status.FAILED
    result = work.result(said["driver"], Outcome(status, said["message"], said["data"]))
    ours = orjson.loads(encode_result(work, result))
    own = ours.pop("cv", None)
    assert ours == theirs and (own is None) is plain


@pytest.fixture
async def cluster(bus: Bus, nats_server: Any) -> Any:
    async with cluster_on(nats_server.url) as cluster:
        yield cluster


async def test_what_we_dispatch_has_their_fields_and_types(cluster: Cluster) -> None:
    [first, second, *_] = captured("drivers.")
    from tests.integration.engine.test_runs import recorder

    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a", "b")
    for name in "ab":
        manager = await cluster.add(recorder(name, []))
        await cluster.stop(manager)
    run_id = (await cluster.post("thing", "one", "p", repository="https://example.org/app.git")).run_id
    found = await cluster.state.run(run_id)
    assert found is not None
    dispatcher = cluster.engine.transitions.dispatcher
    [opened] = list(found.record.open_steps())
    ours = orjson.loads((await dispatcher._message(found.record, *opened)).data)
    assert_like(ours, first)
    payload, theirs = orjson.loads(ours["payload"]), orjson.loads(first["payload"])
    assert_like(payload, theirs)
    assert (
        all(isinstance(value, str) for value in payload["metadata"].values()) and payload["metadata"]["version"] == "1"
    )
    assert (payload["metadata"]["cv.step"], payload["metadata"]["cv.attempt"]) == ("a", "1")

    done = found.record.steps["a"].model_copy(update={"status": Status.SUCCEEDED, "instance": "i", "data": {"n": 1}})
    run = found.record.model_copy(update={"steps": {"a": done, "b": found.record.steps["a"]}})
    later = orjson.loads((await dispatcher._message(run, run.step("b"), run.steps["b"])).data)
    theirs = orjson.loads(second["payload"])["metadata"]["driverresults.git-cloner"]
    assert_like(orjson.loads(orjson.loads(later["payload"])["metadata"]["driverresults.a"]), orjson.loads(theirs))
    assert later["event"] == "create", "the run's own event, in every step"


async def test_a_dispatch_too_big_for_the_bus_ends_its_step(cluster: Cluster) -> None:
    from conveyor_runtime.store import keys
    from tests.integration.engine.test_runs import recorder

    await cluster.define("thing")
    await cluster.pipeline("p", "thing", "a")
    accepted = await cluster.post("thing", "one", "p")
    found = await cluster.state.run(accepted.run_id)
    assert found is not None
    huge = Resource(name="one", resource="thing", spec={"x": "y" * cluster.bus.max_payload})
    await cluster.state.commit(Put(keys.run(accepted.run_id), found.record.model_copy(update={"resource": None})))
    cluster.engine.state.run_input = lambda run: _huge(huge)  # type: ignore[method-assign]
    await cluster.add(recorder("a", []))
    run = await cluster.ended(accepted.run_id)
    assert run.status == "Error" and "the bus takes" in run.reason


async def _huge(resource: Resource) -> Resource:
    return resource
