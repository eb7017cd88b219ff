"""What a driver may be, and what its reconcile is handed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, ValidationError

from conveyor_runtime.errors import ConfigError
from conveyor_runtime.models import DriverResult, Resource
from conveyor_runtime.orchestra import Limits
from conveyor_runtime.reconcile import Driver, DriverLogger, RunContext, driver
from conveyor_runtime.reconcile.work import decode, payload_of
from tests.unit.reconcile.fakes import RUN, delivery


class Spec(BaseModel):
    url: str
    depth: int = 1


def plain(payload: str, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
    return DriverResult(success=True)


def untyped(payload, event, run_id, logger):
    return None


def typed(payload: Resource[Spec], event: str, run_id: str, logger: DriverLogger) -> None: ...


def whole(payload: Resource, event: str, run_id: str, logger: DriverLogger, context: RunContext) -> None: ...


def strange(payload: dict[str, Any], event: str, run_id: str, logger: DriverLogger) -> None: ...


def unknown(payload: Nowhere, event: str, run_id: str, logger: DriverLogger) -> None: ...  # type: ignore[name-defined] # noqa: F821


async def in_loop(payload: str, event: str, run_id: str, logger: DriverLogger) -> None: ...


class Called:
    async def __call__(self, payload: Resource[Spec], event: str, run_id: str, logger: DriverLogger) -> None: ...


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"name": "a.b"}, r"driver name 'a\.b': must be 1 to 128"),
        ({"name": ""}, "driver name ''"),
        ({"resources": ()}, "driver d: name at least one resource type"),
        ({"resources": ("a b",)}, "driver d: resource type 'a b' must be"),
        ({"events": ("create", "created")}, r"events must be among create, .* not \['created'\]"),
        ({"events": ()}, "events must be among"),
        ({"resync_period": 0, "events": "*"}, "resync_period must be above 0"),
        ({"rate_limit": "ten a minute"}, "write a number and a unit like 10/s"),
        ({"rate_limit": "0/s"}, "must be above 0"),
        ({"max_concurrent": 0}, "max_concurrent must be at least 1"),
        ({"max_concurrent": 2, "sandbox": True}, "not for drivers with sandbox"),
        ({"resync_period": 60}, "only for direct drivers that take resync"),
        ({"resync_period": 60, "events": ("resync",), "direct": False}, "only for direct drivers that take resync"),
        ({"reconcile": None}, "driver d: reconcile must be a function"),
        ({"reconcile": lambda payload, event: None}, r"reconcile must take \(payload, event, run_id, logger\)"),
    ],
)
def test_a_driver_that_could_never_work_is_refused_with_the_reason(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Driver(**{"name": "d", "resources": ("thing",), "reconcile": plain, **fields})


@pytest.mark.parametrize(
    ("reconcile", "why"),
    [(strange, "payload must be annotated str, Resource"), (unknown, "name 'Nowhere' is not")],
)
def test_an_annotation_nobody_can_serve_is_refused(reconcile: Callable[..., Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        _ = Driver("d", ("thing",), reconcile).payload_type


@pytest.mark.parametrize(
    ("reconcile", "payload", "is_async", "context"),
    [
        (plain, str, False, False),
        (untyped, str, False, False),
        (typed, Resource[Spec], False, False),
        (whole, Resource, False, True),
        (in_loop, str, True, False),
        (Called(), Resource[Spec], True, False),
        (partial(typed), Resource[Spec], False, False),
    ],
)
def test_what_is_read_from_the_function(
    reconcile: Callable[..., Any], payload: Any, is_async: bool, context: bool
) -> None:
    made = Driver("d", ("thing",), reconcile)
    assert (made.payload_type, made.is_async, made.takes_context) == (payload, is_async, context)


def test_the_decorator_makes_the_same_driver() -> None:
    made = driver("d", "thing", "other", events="*", direct=False)(plain)
    assert made.record() == Driver("d", ("thing", "other"), plain, events=("*",), direct=False).record()
    assert made.record().takes("other", "resync") and not made.record().takes("else", "create")


def test_the_default_events_are_create_and_update() -> None:
    record = Driver("d", ("thing",), plain).record()
    assert [record.takes("thing", event) for event in ("create", "update", "delete", "resync")] == [
        True,
        True,
        False,
        False,
    ]


# -- payload -----------------------------------------------------------------------------------------------------


def work(spec: Any) -> Any:
    payload = orjson.dumps({"name": "one", "resource": "thing", "spec": spec, "mystery": 1}).decode()
    return decode(delivery(orjson.dumps({"event": "create", "run_id": RUN, "payload": payload})))


def test_text_is_handed_over_as_it_came() -> None:
    it = work({"url": "x"})
    assert payload_of(it, Driver("d", ("thing",), plain), {}) == it.message.payload


def test_a_typed_resource_is_validated() -> None:
    found = payload_of(work({"url": "x", "depth": 3}), Driver("d", ("thing",), typed), {})
    assert isinstance(found, Resource) and found.spec == Spec(url="x", depth=3)
    with pytest.raises(ValidationError):
        payload_of(work({}), Driver("d", ("thing",), typed), {})


def test_defaults_fill_what_is_left_out_and_the_operators_win() -> None:
    made = Driver("d", ("thing",), typed, defaults={"thing": {"url": "driver", "depth": 7}, "other": {"url": "no"}})
    assert payload_of(work({}), made, {"thing": {"url": "operator"}}).spec == Spec(url="operator", depth=7)  # type: ignore[union-attr]
    assert payload_of(work({"url": "own"}), made, {}).spec == Spec(url="own", depth=7)  # type: ignore[union-attr]
    text = payload_of(work({"a": 1}), Driver("d", ("thing",), plain), {"thing": {"b": 2}})
    assert orjson.loads(text)["spec"] == {"a": 1, "b": 2}  # type: ignore[arg-type]
    assert orjson.loads(text)["mystery"] == 1  # type: ignore[arg-type]


def test_defaults_leave_a_spec_alone_that_is_no_object() -> None:
    text = payload_of(work([1]), Driver("d", ("thing",), plain), {"thing": {"b": 2}})
    assert orjson.loads(text)["spec"] == [1]  # type: ignore[arg-type]


def test_its_record_tells_what_its_runs_may_wait_for() -> None:
    record = Driver("d", ("thing",), plain, rate_limit="10/s", uses=lambda payload: Limits(cpu_milli=1)).record()
    assert (record.rate_limit, record.uses) == ("10/s", True)
    assert not Driver("d", ("thing",), plain).record().uses
