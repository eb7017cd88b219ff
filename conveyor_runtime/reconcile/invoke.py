"""Calls user code, sync or async, and stops it: by cancellation, by `context.cancelled`, within a bounded time."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from conveyor_runtime.errors import ConveyorError
from conveyor_runtime.models import Resource, Status
from conveyor_runtime.reconcile import outcome
from conveyor_runtime.reconcile.context import RunContext
from conveyor_runtime.reconcile.driver import Driver
from conveyor_runtime.reconcile.logger import DriverLogger
from conveyor_runtime.reconcile.outcome import Outcome

#: The run whose reconcile is executing: for user code's own logging and tracing.
current_run: contextvars.ContextVar[str] = contextvars.ContextVar("conveyor_run_id", default="")


class Stop(StrEnum):
    """Why user code is stopped before it is done."""

    CANCEL = "cancelled"
    TIMEOUT = "timed out"
    LEASE = "lost its lease"
    STALE = "another worker has it"
    DRAIN = "the process is stopping"


class StuckError(Exception):
    """User code did not stop within the grace; only the end of its process ends it."""

    def __init__(self, why: Stop) -> None:
        super().__init__(f"it did not stop when it should ({why})")
        self.why = why


def _escaping(error: BaseException) -> RuntimeError:
    """What stands for an exception that asyncio would not carry: one would end the process, the other never arrive."""
    return RuntimeError(f"reconcile raised {type(error).__name__}: {error}")


class Threads(ThreadPoolExecutor):
    """The threads of sync user code. `busy` tells whether any of it still runs: it cannot be ended from outside."""

    def __init__(self, count: int, name: str = "") -> None:
        super().__init__(count, thread_name_prefix=name)
        self._calls: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn` in a thread."""
        call = super().submit(fn, *args, **kwargs)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return call

    @property
    def busy(self) -> bool:
        """Whether user code runs now."""
        return any(call.running() for call in list(self._calls))


@dataclass
class Invocation:
    """One call of user code. `stop(why)` ends it early, from any coroutine, at most once."""

    driver: Driver
    payload: str | Resource
    context: RunContext
    logger: DriverLogger
    grace: float
    executor: Threads

    def __post_init__(self) -> None:
        self.stopping: Stop | None = None
        """Why it was asked to end, if it was."""
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def stop(self, why: Stop) -> None:
        """Have it end within the grace."""
        if self.stopping is None:
            self.stopping = why
            self._wake()

    def _wake(self, _: object = None) -> None:
        if not self._news.done():
            self._news.set_result(None)

    async def run(self) -> Outcome | None:
        """The outcome; None if it was stopped for a reason that is not the task's, so that another worker goes on.

        Raises StuckError if it cannot be stopped.
        """
        call = asyncio.create_task(self._call())
        # One future for its end, a stop and the timeout: `asyncio.wait` would cost more than a short call itself.
        call.add_done_callback(self._wake)
        timer = self._start_timer()
        try:
            await self._news
            if call.done():
                return self._of(call)
            assert self.stopping is not None
            self._tell()
            if self.driver.is_async:
                call.cancel()
            # The grace is the containers' to die in; user code gets a little more to see it and return.
            await asyncio.wait({call}, timeout=self.grace + 2.0)
            if not call.done():
                raise StuckError(self.stopping)
            return self._of_stopped(call, self.stopping)
        except asyncio.CancelledError:
            self._tell()
            call.cancel()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _start_timer(self) -> asyncio.TimerHandle | None:
        if self.context.deadline is None:
            return None
        left = max(self.context.deadline - time.monotonic(), 0.0)
        return asyncio.get_running_loop().call_later(left, self.stop, Stop.TIMEOUT)

    def _tell(self) -> None:
        """Have sync code see that it must end, also code that waits for room in the log."""
        self.context.abandoned = self.stopping is Stop.STALE
        self.context.cancelled.set()
        self.logger.release()

    async def _call(self) -> object:
        current_run.set(self.context.run_id)
        arguments = (self.payload, self.context.event, self.context.run_id, self.logger)
        keywords = {"context": self.context} if self.driver.takes_context else {}
        if self.driver.is_async:
            try:
                return await self.driver.reconcile(*arguments, **keywords)
            except SystemExit as error:
                raise _escaping(error) from error
        context = contextvars.copy_context()

        def call() -> object:
            try:
                return context.run(self.driver.reconcile, *arguments, **keywords)
            except (SystemExit, StopIteration) as error:
                raise _escaping(error) from error

        return await asyncio.get_running_loop().run_in_executor(self.executor, call)

    def _of(self, call: asyncio.Future[object]) -> Outcome:
        """The outcome of a call that ended by itself."""
        if call.cancelled():
            return Outcome(Status.ERROR, "reconcile was cancelled by its own code", retryable=True)
        error = call.exception()
        if error is None:
            return outcome.of_return(call.result())
        result = outcome.of_exception(error)
        if isinstance(error, ConveyorError):
            self.logger.error(result.message)
        else:
            self.logger.error(outcome.where(error, below=__file__))
        return result

    def _of_stopped(self, call: asyncio.Future[object], why: Stop) -> Outcome | None:
        """The outcome of a call that was asked to end: its own word counts where it still gave one."""
        if why in (Stop.LEASE, Stop.STALE):
            return None
        if not call.cancelled() and call.exception() is None:
            return outcome.of_return(call.result())
        if why is Stop.TIMEOUT:
            assert self.context.deadline is not None
            return Outcome(Status.TIMED_OUT, "it did not finish within its timeout")
        if why is Stop.CANCEL:
            return Outcome(Status.CANCELLED, "stopped on request")
        return None
