"""The drivers under test: `first` is async, `second` sync. What they do, each resource says for each of its steps."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from conveyor_runtime import Driver, DriverLogger, DriverResult, Resource, RunContext
from tests.chaos import journal

TYPE = "chaos"

#: Exit code of a process that took poison.
POISONED = 9


class Attempt:
    """One reconcile: its part of the spec, its journal, its log.

    `sleep` seconds in all, `lines` of log spread over them, `outcome` one of ok, fail, or retry:N (raise in the first N
    attempts), `deaf` seconds for which it ignores that it must end, `poison` ends the process.
    """

    def __init__(self, payload: Resource[Any], event: str, run_id: str, logger: DriverLogger, context: RunContext):
        spec = payload.spec["steps"].get(context.step, {})
        self.sleep: float = spec.get("sleep", 0.1)
        self.lines: int = spec.get("lines", 2)
        self.outcome: str = spec.get("outcome", "ok")
        self.deaf: float = spec.get("deaf", 0.0)
        self.logger, self.context = logger, context
        self.logged = 0
        self._named = {
            "run_id": run_id,
            "resource_id": payload.id,
            "step": context.step,
            "attempt": context.attempt,
            "takeover": context.takeover,
            "event": event,
        }
        context.ensure_current()
        journal.write(kind="start", **self._named)
        if spec.get("poison"):
            os._exit(POISONED)

    def log(self) -> None:
        """One line, numbered."""
        self.logged += 1
        self.logger.info(f"line {self.logged}")

    def end(self, how: str) -> None:
        """Note that no more is done."""
        journal.write(kind="end", how=how, lines=self.logged, **self._named)

    def result(self) -> DriverResult:
        """What the spec asks for. Raises RuntimeError where it asks for a failure that another attempt mends."""
        context = self.context
        if self.outcome.startswith("retry:") and context.attempt <= int(self.outcome.partition(":")[2]):
            self.end("failed")
            raise RuntimeError("not yet")
        self.end("done")
        return DriverResult(success=self.outcome != "fail", message="as asked", data={"takeover": context.takeover})


async def first_reconcile(
    payload: Resource[Any], event: str, run_id: str, logger: DriverLogger, context: RunContext
) -> DriverResult:
    """Async: stopped by cancellation."""
    attempt = Attempt(payload, event, run_id, logger, context)
    try:
        for _ in range(attempt.lines):
            attempt.log()
            await asyncio.sleep(attempt.sleep / max(attempt.lines, 1))
    except asyncio.CancelledError:
        attempt.end("stopped")
        raise
    return attempt.result()


def second_reconcile(
    payload: Resource[Any], event: str, run_id: str, logger: DriverLogger, context: RunContext
) -> DriverResult:
    """Sync: asks whether it must end."""
    attempt = Attempt(payload, event, run_id, logger, context)
    for _ in range(attempt.lines):
        attempt.log()
        if context.cancelled.wait(attempt.sleep / max(attempt.lines, 1)):
            time.sleep(attempt.deaf)
            attempt.end("stopped")
            raise RuntimeError("stopped")
    return attempt.result()


first = Driver("chaos-first", (TYPE,), first_reconcile, events=("create", "update", "delete"), direct=False)
second = Driver("chaos-second", (TYPE,), second_reconcile, events=("create", "update", "delete"), direct=False)
