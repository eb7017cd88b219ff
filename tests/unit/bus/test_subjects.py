"""The grammar of subjects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyor_runtime.bus import subjects
from conveyor_runtime.errors import InvalidInput


def test_every_subject_is_spelled_as_on_the_wire() -> None:
    assert subjects.step_dispatch("git-cloner", "ci-build") == "drivers.git-cloner.resources.ci-build"
    assert subjects.node_dispatch("builder", "n1", "t") == "drivers.builder.node.n1.resources.t"
    assert subjects.direct_event("t") == "resources.t"
    assert subjects.RESULT == "pipelines.driver.result"
    assert subjects.log("r1") == "logs.r1"
    assert subjects.live_log("r1", "d") == "live.logs.r1.d"
    assert subjects.kv("run.r1") == "$KV.cv-state.run.r1"
    assert subjects.cancel_hint("r1") == "cv.hint.cancel.r1"
    assert subjects.dead_letter("dispatch") == "cv.dlq.dispatch"
    assert subjects.driver_consumer("d") == "cvpy-d"
    assert subjects.node_consumer("d", "n") == "cvpy-d-node-n"


@pytest.mark.parametrize(
    "make",
    [
        subjects.direct_event,
        subjects.log,
        subjects.kv,
        subjects.cancel_hint,
        subjects.dead_letter,
        subjects.driver_consumer,
        lambda token: subjects.step_dispatch("d", token),
        lambda token: subjects.step_dispatch(token, "t"),
        lambda token: subjects.node_dispatch("d", token, "t"),
        lambda token: subjects.live_log("r", token),
        lambda token: subjects.node_consumer("d", token),
    ],
)
@pytest.mark.parametrize("token", ["", "*", ">", "a b", "a\r\nPUB b 0", "ä", "a" * 129, "a\n"])
def test_no_subject_is_made_of_what_addresses_others(make: Callable[[str], str], token: str) -> None:
    with pytest.raises(InvalidInput):
        make(token)


def test_a_dot_makes_a_key_part_but_no_token() -> None:
    assert subjects.kv("resource.t.n") == "$KV.cv-state.resource.t.n"
    with pytest.raises(InvalidInput):
        subjects.kv("resource..n")
    with pytest.raises(InvalidInput):
        subjects.direct_event("a.b")


@given(st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True))
def test_tokens_pass_unchanged(token: str) -> None:
    assert subjects.check_token(token, "name") == token


@pytest.mark.parametrize(
    ("pattern", "subject", "does"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.b", "a.bc", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a.b", True),
        ("*.b.>", "a.b.c", True),
        ("*.b.>", "a.c.c", False),
    ],
)
def test_what_a_consumer_is_handed(pattern: str, subject: str, does: bool) -> None:
    assert subjects.matches(pattern, subject) is does
