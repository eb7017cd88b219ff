"""Calling user code, and stopping it. Time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from conveyor_runtime.config import DriverSettings
from conveyor_runtime.errors import (
    BackendUnavailable,
    Gone,
    ImageNotFound,
    RetryableError,
    TaskError,
    TaskFailed,
    TaskTimedOut,
    TerminalError,
)
from conveyor_runtime.models import MAX_DATA, DriverResult, Status
from conveyor_runtime.reconcile import Driver, DriverLogger, RunContext, outcome
from conveyor_runtime.reconcile.invoke import Invocation, Stop, StuckError, Threads, current_run
from conveyor_runtime.reconcile.outcome import Outcome
from tests.unit.reconcile.fakes import RUN, FakeCommitter, a_logger

# -- what becomes of what user code returned or raised -------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "status", "message"),
    [
        (None, Status.SUCCEEDED, ""),
        (DriverResult(success=True, message="ok"), Status.SUCCEEDED, "ok"),
        (DriverResult(success=False, message="no"), Status.FAILED, "no"),
        (True, Status.ERROR, "reconcile returned a bool"),
        ({"success": True}, Status.ERROR, "reconcile returned a dict"),
        (DriverResult(success=True, data=object()), Status.ERROR, "the result's data is no JSON"),
        (DriverResult(success=True, data="x" * MAX_DATA), Status.ERROR, "at most 65536 are kept"),
        (DriverResult(success=True, requeue_after=-1), Status.ERROR, "requeue_after is -1"),
        (DriverResult(success=True, requeue_after=1e300), Status.ERROR, "requeue_after is 1e+300"),
        (DriverResult(success=True, requeue_after=float("nan")), Status.ERROR, "requeue_after is nan"),
    ],
)
def test_what_is_returned(value: object, status: Status, message: str) -> None:
    found = outcome.of_return(value)
    assert (found.status, found.retryable) == (status, False) and message in found.message


@pytest.mark.parametrize(
    ("error", "status", "retryable"),
    [
        (TaskFailed("x", exit_code=7), Status.FAILED, False),
        (TerminalError("x"), Status.FAILED, False),
        (TaskTimedOut("x"), Status.TIMED_OUT, False),
        (RetryableError("x"), Status.ERROR, True),
        (TaskError("x"), Status.ERROR, False),
        (ImageNotFound("x"), Status.FAILED, False),
        (BackendUnavailable("x"), Status.ERROR, True),
        (Gone("x"), Status.ERROR, True),
        (ValueError("x"), Status.ERROR, True),
        (KeyError(), Status.ERROR, True),
    ],
)
def test_what_is_raised(error: Exception, status: Status, retryable: bool) -> None:
    found = outcome.of_exception(error)
    assert (found.status, found.retryable) == (status, retryable) and found.message
    assert found.exit_code == getattr(error, "exit_code", None)


def test_how_a_task_failed_counts_more_than_data_that_cannot_be_kept() -> None:
    found = outcome.of_exception(TaskFailed("exit 7", exit_code=7, data=object()))
    assert (found.status, found.exit_code, found.data) == (Status.FAILED, 7, None)
    assert found.message.startswith("exit 7 (the result's data is no JSON")


def test_messages_are_cut_and_can_be_written() -> None:
    assert len(outcome.of_exception(TaskFailed("x" * 5000)).message) == 1000
    assert outcome.of_exception(ValueError("bad name \udcff")).message.encode()


# -- calls ---------------------------------------------------------------------------------------------------------


def call(reconcile: Callable[..., Any], *, timeout: float | None = None, grace: float = 5.0) -> Invocation:
    context = RunContext(
        run_id=RUN, step="s", attempt=1, takeover=0, driver="d", event="create", node="n", installation="i",
        settings=DriverSettings(), deadline=None if timeout is None else asyncio.get_running_loop().time() + timeout,
    )  # fmt: skip
    executor = Threads(1)
    return Invocation(Driver("d", ("thing",), reconcile), "{}", context, a_logger(FakeCommitter()), grace, executor)


@pytest.fixture
def virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's monotonic clock follows the loop's virtual one."""
    clock = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
    monkeypatch.setattr("conveyor_runtime.reconcile.invoke.time", clock)


async def forever(payload: str, event: str, run_id: str, logger: DriverLogger) -> None:
    await asyncio.Event().wait()


async def stubborn(payload: str, event: str, run_id: str, logger: DriverLogger) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()


async def says_so(payload: str, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return DriverResult(success=True, message="just in time")
    raise AssertionError


async def fails_on_stop(payload: str, event: str, run_id: str, logger: DriverLogger) -> DriverResult:
    try:
        await asyncio.Event().wait()
    finally:
        raise RuntimeError("while it stopped")


@pytest.mark.looptime
@pytest.mark.usefixtures("virtual_clock")
async def test_a_timeout_ends_async_code() -> None:
    """Rule 14."""
    invocation = call(forever, timeout=60)
    begun = asyncio.get_running_loop().time()
    result = await invocation.run()
    assert result == Outcome(Status.TIMED_OUT, "it did not finish within its timeout")
    assert asyncio.get_running_loop().time() - begun == pytest.approx(60)
    assert invocation.stopping is Stop.TIMEOUT and invocation.context.cancelled.is_set()


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("why", "reconcile", "status"),
    [
        (Stop.CANCEL, forever, Status.CANCELLED),
        (Stop.CANCEL, fails_on_stop, Status.CANCELLED),
        (Stop.CANCEL, says_so, Status.SUCCEEDED),
        (Stop.TIMEOUT, says_so, Status.SUCCEEDED),
        (Stop.DRAIN, forever, None),
        (Stop.DRAIN, fails_on_stop, None),
        (Stop.DRAIN, says_so, Status.SUCCEEDED),
        (Stop.LEASE, forever, None),
        (Stop.LEASE, says_so, None),
        (Stop.STALE, says_so, None),
    ],
)
async def test_how_a_stop_ends(why: Stop, reconcile: Callable[..., Any], status: Status | None) -> None:
    """Rules 12 and 13: who may no longer speak for the attempt says nothing."""
    invocation = call(reconcile, timeout=10**6)
    running = asyncio.create_task(invocation.run())
    await asyncio.sleep(1)
    invocation.stop(why)
    invocation.stop(Stop.DRAIN)
    result = await running
    assert (result.status if result else None) == status and invocation.stopping is why
    assert invocation.context.abandoned is (why is Stop.STALE)


@pytest.mark.looptime
async def test_code_that_does_not_stop_is_stuck_after_the_grace() -> None:
    """Rule 14."""
    invocation = call(stubborn, grace=10)
    running = asyncio.create_task(invocation.run())
    await asyncio.sleep(1)
    begun = asyncio.get_running_loop().time()
    invocation.stop(Stop.CANCEL)
    with pytest.raises(StuckError) as caught:
        await running
    assert caught.value.why is Stop.CANCEL
    assert asyncio.get_running_loop().time() - begun == pytest.approx(12)


@pytest.mark.looptime
async def test_a_stop_before_the_start_is_not_forgotten() -> None:
    invocation = call(forever)
    invocation.stop(Stop.CANCEL)
    result = await invocation.run()
    assert result is not None and result.status is Status.CANCELLED


async def test_sync_code_runs_in_a_thread_and_knows_its_run() -> None:
    seen: list[object] = []

    def reconcile(payload: str, event: str, run_id: str, logger: DriverLogger, context: RunContext) -> DriverResult:
        seen.extend([current_run.get(), event, run_id, context.step])
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return DriverResult(success=True)

    result = await call(reconcile).run()
    assert result is not None and result.status is Status.SUCCEEDED
    assert seen == [RUN, "create", RUN, "s"] and current_run.get() == ""


async def test_sync_code_that_waits_for_its_cancel_is_stopped() -> None:
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def reconcile(payload: str, event: str, run_id: str, logger: DriverLogger, context: RunContext) -> None:
        loop.call_soon_threadsafe(started.set)
        assert context.cancelled.wait(10)
        raise RuntimeError("stopped")

    invocation = call(reconcile)
    running = asyncio.create_task(invocation.run())
    await started.wait()
    invocation.stop(Stop.CANCEL)
    result = await running
    assert result is not None and result.status is Status.CANCELLED


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration("x"), StopAsyncIteration(), asyncio.CancelledError()])
@pytest.mark.parametrize("is_async", [True, False])
async def test_no_exception_escapes_or_is_lost(error: BaseException, is_async: bool) -> None:
    def sync(payload: str, event: str, run_id: str, logger: DriverLogger) -> None:
        raise error

    async def in_loop(payload: str, event: str, run_id: str, logger: DriverLogger) -> None:
        raise error

    async with asyncio.timeout(5):
        result = await call(in_loop if is_async else sync).run()
    assert result is not None and result.status is Status.ERROR and result.retryable


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_traceback_begins_with_the_users_code(is_async: bool) -> None:
    def sync(payload: str, event: str, run_id: str, logger: DriverLogger) -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("oops") from error

    async def in_loop(payload: str, event: str, run_id: str, logger: DriverLogger) -> None:
        sync(payload, event, run_id, logger)

    invocation = call(in_loop if is_async else sync)
    committer = FakeCommitter()
    invocation.logger = a_logger(committer)
    await invocation.run()
    await invocation.logger.flush()
    frames = [text.split(", in ")[1] for text in committer.texts if text.startswith("  File ")]
    assert frames == (["sync", "in_loop", "sync"] if is_async else ["sync", "sync"])
    assert {"KeyError: 'first'", "ValueError: oops"} <= set(committer.texts)
    await invocation.logger.close()


async def test_cancelling_the_caller_ends_the_call() -> None:
    invocation = call(forever)
    running = asyncio.create_task(invocation.run())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert invocation.context.cancelled.is_set()


def test_a_side_effect_is_refused_without_the_lease() -> None:
    """Rule 12."""
    context = RunContext("r", "s", 1, 0, "d", "create", "n", "i", DriverSettings())
    context.ensure_current()
    context.lease_held = lambda: False
    with pytest.raises(RetryableError, match="lost its lease"):
        context.ensure_current()
    context.lease_held = lambda: True
    context.cancelled.set()
    with pytest.raises(RetryableError):
        context.ensure_current()
    with pytest.raises(RuntimeError, match="sandbox=True"):
        _ = context.orchestra
