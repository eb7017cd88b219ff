"""Each promise, judged from what is left. A check returns what it counted and what it found wrong."""

from __future__ import annotations

from collections.abc import Callable

from tests.chaos import checks_foreign, checks_runs, checks_work
from tests.chaos.evidence import Evidence
from tests.chaos.verdict import Verdict

#: Every promise, in order.
CHECKS: tuple[Callable[[Evidence], Verdict], ...] = (
    checks_runs.accepted_writes_end,
    checks_work.nothing_twice,
    checks_runs.one_run_per_resource,
    checks_work.dead_workers_are_replaced,
    checks_work.logs_are_complete,
    checks_work.nothing_is_left,
    checks_runs.finally_steps_ran,
    checks_runs.poison_is_bounded,
    checks_foreign.foreign_steps,
)
