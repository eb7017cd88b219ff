"""Messages in, whatever they are; results out, as everybody reads them."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conveyor_runtime.models import PipelineEvent, Status, StepResult
from conveyor_runtime.reconcile.outcome import Outcome
from conveyor_runtime.reconcile.publish import encode_result
from conveyor_runtime.reconcile.work import UndecodableError, decode, unreadable
from tests.unit.reconcile.fakes import RUN, delivery

RESOURCE = {
    "id": "i",
    "name": "one",
    "resource": "thing",
    "metadata": {"version": "1"},
    "spec": {"a": 1},
    "later": [None],
}
OURS = {"Cv-Run": RUN, "Cv-Step": "s", "Cv-Attempt": "1", "Cv-Takeover": "2", "Cv-Issue": "3", "Cv-Timeout": "1.5"}


def body(**fields: Any) -> bytes:
    message = {"event": "update", "run_id": RUN, "id": "m", "payload": orjson.dumps(RESOURCE).decode()}
    return orjson.dumps({**message, **fields})


def test_a_dispatch_of_ours() -> None:
    work = decode(delivery(body(), OURS, "drivers.d.node.n1.resources.thing"))
    assert work.numbers == (RUN, "s", 1, 2) and not work.plain
    assert (work.timeout, work.node, work.message.event, work.resource.name) == (1.5, "n1", "update", "one")


def test_a_message_of_another_publisher_is_plain() -> None:
    """Rule 18."""
    work = decode(delivery(body(payload=RESOURCE), subject="resources.thing"))
    assert work.plain and work.node is None and work.resource.spec == {"a": 1}


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b"", {}),
        (b"null", {}),
        (b"\xff", {}),
        (body(payload="{"), {}),
        (body(payload="{}"), {}),
        (body(payload=None), {}),
        (body(payload='{"resource":"thing","spec":NaN}'), {}),
        (b'{"run_id":"r","payload":{"resource":"t","spec":123456789012345678901234567890}}', {}),
        (body(run_id=""), {}),
        (body(run_id="a.b"), {}),
        (body(run_id="*"), {}),
        (body(), {**OURS, "Cv-Run": "a b"}),
        (body(), {**OURS, "Cv-Step": ""}),
        (body(), {**OURS, "Cv-Step": "a.b"}),
        (body(), {**OURS, "Cv-Attempt": "one"}),
        (body(), {**OURS, "Cv-Attempt": "-1"}),
        (body(), {**OURS, "Cv-Attempt": "9" * 5000}),
        (body(), {**OURS, "Cv-Takeover": "-1"}),
        (body(), {**OURS, "Cv-Timeout": "nan"}),
        (body(), {**OURS, "Cv-Timeout": "-1"}),
    ],
)
def test_what_cannot_be_handed_to_a_driver_says_why(data: bytes, headers: dict[str, str]) -> None:
    with pytest.raises(UndecodableError, match=r"."):
        decode(delivery(data, headers))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
HEADERS = st.dictionaries(
    st.sampled_from([*OURS]), st.text(max_size=8) | st.integers().map(str) | st.sampled_from([*OURS.values()])
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    import json

    fields = draw(st.dictionaries(st.sampled_from(["event", "run_id", "id", "payload"]), JSON))
    if draw(st.booleans()):
        inner = draw(st.dictionaries(st.sampled_from(["resource", "spec", "metadata", "name", "pipeline"]), JSON))
        fields["payload"] = json.dumps(inner) if draw(st.booleans()) else inner
    return json.dumps(fields).encode()


@settings(deadline=None)
@given(st.binary(max_size=60) | messages(), HEADERS)
@example(b"[" * 100_000, {})
@example(b'{"payload":"' + b"[" * 100_000 + b'"}', {})
def test_garbage_is_undecodable_and_nothing_else(data: bytes, headers: dict[str, str]) -> None:
    it = delivery(data, headers)
    with contextlib.suppress(UndecodableError):
        work = decode(it)
        assert work.run_id and work.resource.resource
    unreadable(it)


def test_an_unreadable_message_still_names_the_attempt_to_be_ended() -> None:
    work = unreadable(delivery(b"garbage", OURS))
    assert work is not None and work.numbers == (RUN, "s", 1, 2)
    assert unreadable(delivery(b"garbage", {})) is None
    assert unreadable(delivery(b"garbage", {**OURS, "Cv-Step": "a.b"})) is None


# -- results -----------------------------------------------------------------------------------------------------


def test_a_result_is_read_by_us_and_by_others_alike() -> None:
    work = decode(delivery(body(), OURS))
    result = work.result("d", Outcome(Status.FAILED, "exit 7", {"x": [1, "ü"]}, 7, retryable=True, requeue_after=5.0))
    data = encode_result(work, result)
    event = PipelineEvent.model_validate_json(data)
    assert (event.event, event.run_id, event.resource.name) == ("driver.result", RUN, "one")
    said = event.driverresult
    assert (said.success, said.message, said.data, said.driver) == (False, "exit 7", {"x": [1, "ü"]}, "d")
    assert StepResult.model_validate(orjson.loads(data)["cv"]) == result
    assert result.msg_id == f"{RUN}.s.1.2"


def test_the_resource_goes_back_as_it_came() -> None:
    work = decode(delivery(body(), OURS))
    assert work.message.payload.encode() in encode_result(work, work.result("d", Outcome(Status.SUCCEEDED)))
    assert orjson.loads(encode_result(work, work.result("d", Outcome(Status.SUCCEEDED))))["resource"] == RESOURCE


def test_a_plain_result_has_nothing_of_ours() -> None:
    """Rule 18."""
    work = decode(delivery(body()))
    assert list(orjson.loads(encode_result(work, work.result("d", Outcome(Status.SUCCEEDED))))) == [
        "event",
        "run_id",
        "resource",
        "driverresult",
    ]


@settings(deadline=None)
@given(
    st.sampled_from([status for status in Status if status.terminal]),
    st.text(max_size=20),
    JSON,
    st.none() | st.integers(-255, 255),
)
def test_whatever_user_code_returns_can_be_encoded(status: Status, message: str, data: Any, code: int | None) -> None:
    from conveyor_runtime.errors import TaskFailed
    from conveyor_runtime.models import DriverResult
    from conveyor_runtime.reconcile import outcome

    work = decode(delivery(body(), OURS))
    for it in (
        outcome.of_return(DriverResult(success=status is Status.SUCCEEDED, message=message, data=data)),
        outcome.of_exception(TaskFailed(message + "\udcff", exit_code=code, data=data)),
        outcome.of_exception(RuntimeError(message)),
    ):
        event = PipelineEvent.model_validate_json(encode_result(work, work.result("d", it)))
        assert event.driverresult.success is (it.status is Status.SUCCEEDED)
