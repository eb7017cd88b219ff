"""Whether the run was one: promises that nothing put to the test are kept by anybody."""

from __future__ import annotations

from conveyor_runtime.models.message import H_REASON, H_RUN
from tests.chaos.evidence import Evidence
from tests.chaos.verdict import Verdict

#: What 45 s of faults bring at the very least, a fifth or less of what they usually do.
_LEAST = {
    "requests answered": 30,
    "runs ended": 15,
    "takeovers": 3,
    "deaths of workers with work in hand": 3,
    "lines stored": 300,
    "logs followed to their end": 2,
}


def enough_happened(it: Evidence, seconds: float) -> Verdict:
    """Of everything that the promises are about, in so many seconds of faults."""
    verdict = Verdict("enough happened")
    lives = it.fleet.lives()
    working = {it.instances[claim.instance].pid for claim in it.claims.values() if claim.instance in it.instances}
    counts = {
        "requests answered": sum(op.outcome == "ok" for op in it.ops),
        "runs ended": sum(run.status.terminal for run in it.runs.values()),
        "takeovers": sum(takeover > 0 for *_, takeover in it.claims),
        "deaths of workers with work in hand": sum(lives[pid][1].ended is not None for pid in working if pid in lives),
        "lines stored": sum(map(len, it.logs.values())),
        "logs followed to their end": sum(not followed.error for followed in it.followed),
    }
    for what, count in counts.items():
        least = int(_LEAST[what] * seconds / 45)
        if count < least:
            verdict.wrong.append(f"only {count} {what}; {seconds:.0f} s of faults bring at least {least}")
    verdict.wrong += _poison_became_letters(it)
    verdict.counted = ", ".join(f"{count} {what}" for what, count in counts.items())
    return verdict


def _poison_became_letters(it: Evidence) -> list[str]:
    """The run that ends every process that takes it, and the message that nobody can read: both are posted once."""
    poisoned = {run.run_id for run in it.runs.values() if run.name == "poison"}
    died = {letter.headers.get(H_RUN) for letter in it.letters if "died" in letter.headers.get(H_REASON, "")}
    wrong = [] if poisoned and poisoned <= died else [f"runs {sorted(poisoned)} were poisoned; letters are of {died}"]
    if not any(letter.data == b"no JSON" for letter in it.letters):
        wrong.append("the message that nobody can read is no dead letter")
    return wrong
