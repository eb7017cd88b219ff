"""The requests that were captured from the real Conveyor engine, replayed in their order on ours.

Good requests get the same status, content type, members and values; what ours answers otherwise is in `DIFFERENT`,
and why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from conveyor_runtime.models import Status
from tests.unit.api.world import World, events_of

CASES: list[dict[str, Any]] = orjson.loads((Path(__file__).parent / "data" / "http.json").read_bytes())

#: Case -> our status, and why it is another.
DIFFERENT: dict[str, tuple[int, str]] = {
    "resource of an undefined type": (422, "well-formed, but its type does not exist"),
    "create the same definition again": (409, "it exists"),
    "get missing definition": (404, "it does not exist"),
    "update missing definition": (404, "it does not exist"),
    "definition, empty object": (400, "a definition without a name can never be used"),
    "definition, schema that is no schema": (400, "it would refuse every resource later, or none"),
    "list definitions": (200, "a list exists"),
    "pipeline of an undefined type": (422, "well-formed, but its type does not exist"),
    "get pipeline": (200, "it can be read"),
    "list pipelines": (200, "a list exists"),
    "create the same resource again": (409, "it exists"),
    "create resource, unknown pipeline": (422, "well-formed, but its pipeline does not exist"),
    "create resource, no name": (400, "nobody could address it"),
    "update missing resource": (404, "it does not exist"),
    "get resource version 99": (404, "it does not exist"),
    "get resource version 'x'": (404, "it does not exist"),
    "get missing resource": (404, "it does not exist"),
    "list resources": (200, "a list exists"),
    "list resources of a type": (200, "a list exists"),
    "get deleted resource": (404, "it does not exist"),
    "delete missing resource": (404, "it does not exist"),
    "delete definition in use": (409, "resources of its type could not be updated any more"),
    "delete missing definition": (404, "it does not exist"),
    "create log, empty": (400, "a line of no run can never be read"),
    "metrics (names only)": (200, "metrics work"),
}

#: Members whose values are made anew each time.
FRESH = {"id", "runid", "time", "timestamp"}

#: Case -> members whose values are ours.
OWN_VALUES = {
    "create pipeline": {"steps"},  # every step has an id
    "create the same pipeline again": {"steps"},
}

LINES = {"git-cloner": ["line 0", "line 1"], "builder": ["line 0"], "noop": ["line 0"]}


async def test_replay() -> None:
    async with World() as world:
        for driver, type_ in (("git-cloner", "flutter-builder"), ("builder", "flutter-builder"), ("noop", "pipe")):
            await world.register(driver, type_)
        await world.register("failing", "broken")
        runs: dict[str, str] = {}
        for case in CASES:
            await replay(world, case, runs)
        assert len(runs) == 4


async def replay(world: World, case: dict[str, Any], runs: dict[str, str]) -> None:
    name, request, expected = case["case"], case["request"], case["answer"]
    path = request["path"]
    for theirs, ours in runs.items():
        path = path.replace(theirs, ours)
    body = request.get("body")
    headers = request.get("headers", {"content-type": "application/json"} if body is not None else {})
    content = body.encode() if isinstance(body, str) else None if body is None else orjson.dumps(body)
    answer = await world.http.request(request["method"], path, content=content, headers=headers)
    status = DIFFERENT[name][0] if name in DIFFERENT else expected["status"]
    assert answer.status_code == status, (name, answer.text)
    media_type = answer.headers.get("content-type")
    if answer.status_code >= 400:
        assert media_type == "application/problem+json", name
        assert isinstance(answer.json()["error"], str), name
    elif name not in DIFFERENT:
        assert media_type == expected.get("content_type"), name
        if media_type == "application/json" and not isinstance(expected["body"], list):
            compare(name, expected["body"], answer.json(), OWN_VALUES.get(name, set()))
        elif media_type == "application/json":
            compare_lines(name, expected["body"], answer.json())
        elif media_type == "text/event-stream":
            compare_events(name, expected["chunks"], answer.text)
    if answer.status_code in (200, 201) and media_type == "application/json":
        await work_off(world, expected, answer.json(), runs)


async def work_off(world: World, expected: dict[str, Any], answer: Any, runs: dict[str, str]) -> None:
    """What the drivers of the capture did with the run that this answer names."""
    run_id = answer.get("runid") if isinstance(answer, dict) else None
    if not run_id:
        return
    if isinstance(expected["body"], dict) and expected["body"].get("runid"):
        runs[expected["body"]["runid"]] = run_id
    found = await world.state.run(run_id)
    assert found is not None
    failing = found.record.type == "broken"
    ended = await world.run_steps(run_id, Status.FAILED if failing else Status.SUCCEEDED)
    assert ended.status is (Status.FAILED if failing else Status.SUCCEEDED)
    if found.record.event == "create":
        for step in ended.plan or ():
            for line in LINES.get(step.driver, ()):
                await world.line(run_id, line, step.driver)


def compare(name: str, theirs: Any, ours: Any, own: set[str], where: str = "") -> None:
    """Every member of theirs is in ours, of the same type and, unless made anew, of the same value."""
    assert isinstance(ours, type(theirs)), (name, where)
    if isinstance(theirs, dict):
        for key, value in theirs.items():
            assert key in ours, (name, f"{where}/{key}")
            if key in own or key in FRESH:
                assert isinstance(ours[key], type(value)), (name, f"{where}/{key}")
            else:
                compare(name, value, ours[key], own, f"{where}/{key}")
    elif isinstance(theirs, list):
        assert len(theirs) == len(ours), (name, where)
        for index, (one, other) in enumerate(zip(theirs, ours, strict=True)):
            compare(name, one, other, own, f"{where}/{index}")
    else:
        assert ours == theirs, (name, where)


def key_of(line: dict[str, Any]) -> tuple[str, str]:
    return line["driver"], line["message"]


def compare_lines(name: str, theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> None:
    """The same lines, whatever their order: theirs is by driver and then by chance."""
    if name == "logs of a pipeline":
        # Their lines never name a pipeline, so they find none; a line belongs to its run's pipeline here.
        assert len(ours) == 3
        return
    for line in ours:
        assert set(line) >= {"runid", "driver", "pipeline", "timestamp", "message"}
        assert all(isinstance(line[key], str) for key in ("runid", "driver", "pipeline", "timestamp", "message"))
    # The resource without a name ran there and not here.
    without_it = [line for line in theirs if line["runid"] != "d033364c-a75e-4f03-bcf9-718cd2e957e2"]
    assert sorted(map(key_of, ours)) == sorted(map(key_of, without_it)), name


def compare_events(name: str, chunks: list[str], text: str) -> None:
    """The lines of the capture, then the end it never had."""
    theirs = [orjson.loads(part.removeprefix("data: ")) for part in chunks[0].split("\n\n") if part]
    *lines, end = events_of(text)
    assert sorted(map(key_of, theirs)) == sorted(key_of(data) for _, _, data in lines), name
    assert [id_ for _, id_, _ in lines] == sorted((id_ for _, id_, _ in lines), key=int)
    assert end[0] == "end"
    assert end[2] == {"status": "Succeeded"}


@pytest.mark.parametrize("case", DIFFERENT)
def test_every_difference_is_one(case: str) -> None:
    [captured] = [it for it in CASES if it["case"] == case]
    assert captured["answer"]["status"] != DIFFERENT[case][0]
