"""The attempts one process has in hand, and what ends them early."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from conveyor_runtime.errors import InfrastructureError
from conveyor_runtime.reconcile.invoke import Invocation, Stop
from conveyor_runtime.reconcile.lease import Lease
from conveyor_runtime.reconcile.work import Work
from conveyor_runtime.store import State

log = logging.getLogger(__name__)


@dataclass
class Job:
    """An attempt this process has claimed, is claiming, or is publishing the result of. `stuck` is one whose user code
    did not stop: only the end of this process ends it."""

    work: Work
    invocation: Invocation | None = None
    stop_why: Stop | None = None
    stuck: bool = False

    def stop(self, why: Stop) -> None:
        """End it early; before user code starts, it never does."""
        self.stop_why = self.stop_why or why
        if self.invocation is not None:
            self.invocation.stop(why)


class Jobs:
    """Those in hand, each once."""

    def __init__(self, state: State, lease: Lease) -> None:
        self._state = state
        self._lease = lease
        self._look = asyncio.Event()
        self._jobs: dict[tuple[str, str, int, int], Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def begin(self, key: tuple[str, str, int, int], work: Work) -> Job | None:
        """Take an attempt in hand, by what names it; None if it is."""
        if key in self._jobs:
            return None
        job = self._jobs[key] = Job(work)
        return job

    def end(self, key: tuple[str, str, int, int]) -> None:
        """Put an attempt out of hand; one that is stuck stays, as its user code does."""
        if not self._jobs[key].stuck:
            del self._jobs[key]

    def stop(self, why: Stop | None = None) -> None:
        """End all of them early; without a reason, because this process has no lease."""
        if why is None:
            why = Stop.STALE if self._lease.abandoned() else Stop.LEASE
        for job in self:
            job.stop(why)

    def look(self) -> None:
        """Have `watch` look at them now."""
        self._look.set()

    async def watch(self) -> None:
        """At every `look`, stop what is cancelled, another's, or no longer provably ours."""
        while True:
            await self._look.wait()
            self._look.clear()
            if not self._lease.held():
                self.stop()
                continue
            for job in self:
                if job.work.plain:
                    continue
                try:
                    why = await self._why_stop(job.work.numbers)
                except InfrastructureError as error:
                    log.debug("could not look at run %s: %s", job.work.run_id, error)
                    continue
                if why is not None:
                    job.stop(why)

    async def _why_stop(self, numbers: tuple[str, str, int, int]) -> Stop | None:
        run_id, step_id, attempt, takeover = numbers
        found = await self._state.run(run_id)
        if found is None:
            return Stop.STALE
        run = found.record
        state = run.steps.get(step_id)
        if run.status.terminal or state is None or (state.attempt, state.takeover) != (attempt, takeover):
            return Stop.STALE
        planned = next((step for step in run.plan or () if step.id == step_id), None)
        if run.cancel is not None and planned is not None and not planned.finally_:
            return Stop.CANCEL
        return None
