"""container-start, builder and container-stop on real backends."""

from __future__ import annotations

import asyncio
import json

import pytest

from conveyor_runtime.errors import RetryableError, TaskFailed, TaskTimedOut, TerminalError
from conveyor_runtime.orchestra import sandboxes_of
from drivers.sandboxes import SANDBOX, run_namespace
from tests.contract.conftest import sleeping, unique, until
from tests.unit.drivers.conftest import Run


async def test_start_reports_where_it_is(run: Run) -> None:
    result = await run.step("container-start")
    backend = run.orchestra.pick(run.backend)
    sandbox = await sandboxes_of(backend).get_sandbox(run_namespace(run.context("x")), SANDBOX)
    assert result.data == {
        "containerID": sandbox.id,
        "backend": run.backend,
        "node": backend.node,
        "image": run.image,
        "digest": result.data["digest"],
        "workspace": sandbox.workspace,
    }
    assert result.data["digest"].startswith("sha256:" if run.backend == "docker" else "")
    assert (await run.step("container-start", takeover=1)).data == result.data


async def test_start_refuses_what_it_cannot_have(run: Run) -> None:
    with pytest.raises(TerminalError, match="not served here"):
        await run.step("container-start", backend="qemu")
    if run.backend == "docker":
        with pytest.raises(TerminalError, match="needs an image"):
            await run.step("container-start", image=None)
        with pytest.raises(TerminalError, match="never"):
            await run.step("container-start", image="conveyor-test/none:1", pull="never")


async def test_build_says_what_it_does_as_it_does_it(started: Run) -> None:
    commands = ['echo "$GREETING from $CONVEYOR_RUN_ID $CI"', "echo to stderr >&2\necho and out", "printf 'no end'"]
    result = await started.step("builder", commands=commands, env={"GREETING": "hi"})
    assert result.success
    assert result.data["commands"] == 3
    assert result.data["exitCode"] == 0
    lines = started.log.lines[-8:]
    assert lines[:2] == [("", f"$ {commands[0]}"), ("stdout", f"hi from {started.run_id} true")]
    assert lines[2:4] == [("", "$ echo to stderr >&2"), ("", "> echo and out")]
    assert sorted(lines[4:6]) == [("stderr", "to stderr"), ("stdout", "and out")]
    assert lines[6:] == [("", "$ printf 'no end'"), ("stdout", "no end")]


async def test_lines_come_before_the_end(started: Run) -> None:
    building = asyncio.create_task(started.step("builder", commands=["echo first; sleep 1000"]))
    await until(lambda: ("stdout", "first") in started.log.lines)
    assert not building.done()
    building.cancel()
    await asyncio.wait([building])


async def test_the_last_words_of_a_cancelled_build_are_kept_though_their_line_has_no_end(started: Run) -> None:
    command = "printf 'cut off here'; echo ready >&2; sleep 1000"
    building = asyncio.create_task(started.step("builder", commands=[command]))
    await until(lambda: ("stderr", "ready") in started.log.lines)
    assert ("stdout", "cut off here") not in started.log.lines
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert started.log.lines.count(("stdout", "cut off here")) == 1


async def test_the_last_words_of_a_build_that_takes_too_long_are_kept_though_their_line_has_no_end(
    started: Run,
) -> None:
    with pytest.raises(TaskTimedOut):
        await started.step("builder", commands=["printf 'cut off here'; sleep 1000"], timeout=1)
    assert started.log.lines.count(("stdout", "cut off here")) == 1


async def test_the_first_failure_ends_the_build(started: Run) -> None:
    with pytest.raises(TaskFailed, match=r"^command 2 of 3 failed with exit code 7: exit 7$") as error:
        await started.step("builder", commands=["true", "exit 7", "echo never"])
    assert error.value.exit_code == 7
    assert "never" not in started.log.text.replace("$ echo never", "")


async def test_a_signal_is_told(started: Run) -> None:
    with pytest.raises(TaskFailed, match=r"command 1 of 1 was killed by SIGKILL") as error:
        await started.step("builder", commands=["kill -9 $$"])
    assert error.value.exit_code == 137


async def test_timeout_covers_all_commands_together(started: Run) -> None:
    number = unique()
    commands = ["sleep 0.8", "sleep 0.8", f"sleep {number} & sleep {number}"]
    with pytest.raises(TaskTimedOut, match=r"command [23] of 3, after 1\.5 s"):
        async with asyncio.timeout(15):
            await started.step("builder", commands=commands, timeout="1.5s")
    assert sleeping(number) == []
    with pytest.raises(TaskTimedOut, match=r"command 2 of 2, after 1 s"):
        await started.step("builder", commands=["sleep 0.7", "sleep 0.7"], timeout=1)


async def test_workdir_and_its_absence(started: Run) -> None:
    await started.step("builder", commands=["mkdir -p 'a b' && pwd"])
    await started.step("builder", commands=["pwd"], workdir="a b")
    assert started.log.lines[-1][1].endswith("/a b")
    with pytest.raises(TaskFailed, match="exit code 125"):
        await started.step("builder", commands=["pwd"], workdir="nowhere")


async def test_nothing_to_build(started: Run) -> None:
    with pytest.raises(TerminalError, match=r"spec\.commands"):
        await started.step("builder")


async def test_without_a_sandbox(run: Run) -> None:
    with pytest.raises(TerminalError, match="container-start"):
        await run.step("builder", commands=["true"])
    run.metadata["driverresults.container-start"] = "{}"
    with pytest.raises(TerminalError, match="cannot be read"):
        await run.step("builder", commands=["true"])


async def test_a_sandbox_that_went_away(started: Run) -> None:
    await started.orchestra.pick(started.backend).close_namespace(run_namespace(started.context("x")))
    with pytest.raises(TerminalError, match="gone"):
        await started.step("builder", commands=["true"])


async def test_a_forged_result_leads_nowhere_else(started: Run) -> None:
    key = "driverresults.container-start"
    forged = json.loads(started.metadata[key])
    forged["data"] = json.dumps({**forged["data"], "containerID": "victim"})
    started.metadata[key] = json.dumps(forged)
    assert (await started.step("builder", commands=["true"])).success


@pytest.mark.parametrize(("attempt", "takeover"), [(1, 1), (2, 0)], ids=["takeover", "retry"])
async def test_who_comes_later_ends_what_the_earlier_one_left(started: Run, attempt: int, takeover: int) -> None:
    number = unique()
    earlier = asyncio.create_task(started.step("builder", commands=[f"(setsid sleep {number} &); sleep {number}"]))
    await until(lambda: len(sleeping(number)) == 2)
    result = await started.step("builder", attempt, takeover, commands=["echo again"])
    assert result.success
    assert sleeping(number) == []
    with pytest.raises(TaskFailed):
        await earlier


async def test_a_worker_without_its_lease_starts_nothing(started: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(started, "context", _without_lease(started))
    for driver in ("builder", "container-stop", "git-cloner", "container-start"):
        with pytest.raises(RetryableError):
            await started.step(driver, commands=["touch ran"], repository="https://localhost/none.git")
    monkeypatch.undo()
    await started.step("builder", commands=["test ! -e ran"])


async def test_stop_is_happy_with_what_is_gone(started: Run) -> None:
    await started.step("builder", commands=["sleep 1000 > /dev/null 2>&1 &"])
    assert (await started.step("container-stop")).success
    assert (await started.step("container-stop")).success
    for backend in started.orchestra.backends:
        assert await backend.namespaces(started.installation) == []


async def test_stop_after_a_start_that_did_not_report(started: Run) -> None:
    del started.metadata["driverresults.container-start"]
    assert (await started.step("container-stop", repository=7)).success
    for backend in started.orchestra.backends:
        assert await backend.namespaces(started.installation) == []


def _without_lease(run: Run):
    make = run.context

    def context(*arguments, **options):
        found = make(*arguments, **options)
        found.lease_held = lambda: False
        return found

    return context
