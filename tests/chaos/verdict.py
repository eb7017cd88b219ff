"""One line of the report, and how things are named in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.chaos.evidence import Numbers

#: Seconds by which what two processes noted of one moment may differ.
SLACK = 0.3


@dataclass
class Verdict:
    """One line of the report. `wrong` is empty if the promise was kept."""

    name: str
    counted: str = ""
    wrong: list[str] = field(default_factory=list)


def named(numbers: Numbers) -> str:
    run_id, step, attempt, takeover = numbers
    return f"{step} of {run_id} (attempt {attempt}, takeover {takeover})"


def listed(counts: Counter[str] | Counter[int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=str)) or "none"
