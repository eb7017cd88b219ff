"""The promises about work and workers: I2, I4, I5 and I6."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from conveyor_runtime.models import ENGINE, Claim, Status
from tests.chaos.evidence import Evidence, Numbers
from tests.chaos.fleet import Life, Member
from tests.chaos.journal import Line
from tests.chaos.verdict import SLACK, Verdict, listed, named

#: Seconds after a worker's death within which somebody else must have its work, whatever else is broken meanwhile: a
#: lease's silence, a sweep, and processes that have to start first.
TAKEN_OVER_WITHIN = 120.0

#: Seconds a connection must have been in trouble for its worker to be taken for dead, or to give up by itself.
_CUT_OFF = 15.0

#: Seconds in which a worker that is done, and in touch with NATS, has stored its result.
_TIME_TO_SAY = 3.0


def nothing_twice(it: Evidence) -> Verdict:
    """I2. No attempt and takeover starts twice; nobody starts while another may still be at it, who is not frozen."""
    verdict = Verdict("I2 nothing twice")
    starts = [line for line in it.journal if line.kind == "start"]
    for numbers, count in Counter(line.numbers for line in starts).items():
        if count > 1:
            verdict.wrong.append(f"{named(numbers)} was started {count} times")
    lives = it.fleet.lives()
    ends = {line.numbers: line.at for line in it.journal if line.kind == "end"}
    frozen = 0
    for line, later in _pairs(starts):
        member, life = lives[line.pid]
        until = min(ends.get(line.numbers, float("inf")), life.ended or float("inf"))
        if until <= later.at + SLACK:
            continue
        if any(span.covers(later.at, SLACK) for span in life.frozen):
            frozen += 1
            continue
        verdict.wrong.append(
            f"{named(later.numbers)} started at {later.at:.2f} (pid {later.pid}) while {named(line.numbers)}"
            f" of {member.name} (pid {line.pid}, since {line.at:.2f}) went on until {until:.2f}"
        )
    verdict.wrong += [*_taken_from_the_healthy(it), *_results_lost(it), *_results_of_others(it)]
    verdict.wrong += [f"a build ran beside itself: {text}" for text in it.overlaps]
    takeovers = [numbers for numbers in it.claims if numbers[3] > 0]
    verdict.counted = (
        f"{len(starts)} starts, {len(takeovers)} takeovers, {frozen} beside a frozen worker, {len(it.claims)} claims"
    )
    return verdict


def _pairs(starts: list[Line]) -> Iterator[tuple[Line, Line]]:
    """Every start with each later one of the same run: its steps come one after another."""
    by_run: dict[str, list[Line]] = {}
    for line in starts:
        for earlier in by_run.setdefault(line.run_id, []):
            yield earlier, line
        by_run[line.run_id].append(line)


def _taken_from_the_healthy(it: Evidence) -> Iterator[str]:
    """Work taken from a worker that was neither dead nor frozen nor cut off."""
    for (run_id, step, attempt, takeover), claim in it.claims.items():
        before = it.claims.get((run_id, step, attempt, takeover - 1))
        if takeover and before is not None and not before.given_up and not _was_in_trouble(it, before, claim):
            yield f"{named((run_id, step, attempt, takeover))} was taken from a healthy worker: {before}"


def _results_lost(it: Evidence) -> Iterator[str]:
    """Work done again though whoever had done it lived on, in touch with NATS, long enough to say so."""
    lives = it.fleet.lives()
    for line in it.journal:
        run_id, step, attempt, takeover = line.numbers
        after = it.claims.get((run_id, step, attempt, takeover + 1))
        if line.kind != "end" or line.how == "stopped" or after is None:
            continue
        if after.at.timestamp() - it.wall < line.at:
            continue  # it was not its own any more: a process that was frozen may end its work as it wakes
        member, life = lives[line.pid]
        said = line.at + _TIME_TO_SAY
        quiet = not any(span.touches(line.at, said) for span in (*life.frozen, *member.trouble, *it.fleet.outages))
        if quiet and (life.ended is None or life.ended > said):
            yield f"the result of {named(line.numbers)}, done at {line.at:.2f} by {member.name}, was lost"


def _results_of_others(it: Evidence) -> Iterator[str]:
    """Results committed that are not those of the takeover that the record names."""
    for run in it.runs.values():
        for step_id, state in run.steps.items():
            data = state.data
            if isinstance(data, dict) and data.get("takeover", state.takeover) != state.takeover:
                yield f"{step_id} of {run.run_id}: takeover {state.takeover} holds the result of {data}"


def _was_in_trouble(it: Evidence, before: Claim, after: Claim) -> bool:
    """Whether the owner of a claim was dead, frozen or cut off before the next claim was made."""
    at = after.at.timestamp() - it.wall
    found = _life_of(it, before.instance)
    if found is None:
        return before.instance == ENGINE
    member, life = found
    if life.ended is not None and life.ended <= at + 1.0:
        return True
    begin = before.at.timestamp() - it.wall
    long = [span for span in (*life.frozen, *member.trouble) if span.touches(begin, at)]
    return any((span.end or at) - span.begin >= _CUT_OFF for span in long)


def _life_of(it: Evidence, instance_id: str) -> tuple[Member, Life] | None:
    instance = it.instances.get(instance_id)
    return it.fleet.lives().get(instance.pid) if instance else None


def dead_workers_are_replaced(it: Evidence) -> Verdict:
    """I4. What a dead worker had in hand goes on within a bounded time."""
    verdict = Verdict("I4 dead workers replaced")
    signs = _signs(it)
    waits: list[float] = []
    for numbers, claim in it.claims.items():
        found = _life_of(it, claim.instance)
        if found is None or found[1].ended is None:
            continue
        member, died = found[0], found[1].ended
        since = claim.at.timestamp() - it.wall
        after = [at for at in signs.get(numbers[0], ()) if at > since]
        if since > died or any(at <= died for at in after):
            continue  # it was not in its hands any more
        wait = min(after, default=float("inf")) - died
        waits.append(wait)
        if wait > TAKEN_OVER_WITHIN:
            verdict.wrong.append(f"{named(numbers)} waited {wait:.1f} s after {member.name} had died")
    middle = sorted(waits)[len(waits) // 2] if waits else 0.0
    longest = max(waits, default=0.0)
    verdict.counted = f"{len(waits)} deaths with work in hand, median {middle:.1f} s, longest {longest:.1f} s"
    return verdict


def _signs(it: Evidence) -> dict[str, list[float]]:
    """Per run, when it went on: a claim was made, a step or the run itself ended."""
    signs: dict[str, list[float]] = {}
    for numbers, claim in it.claims.items():
        signs.setdefault(numbers[0], []).append(claim.at.timestamp() - it.wall)
    for run in it.runs.values():
        for at in (run.finished_at, *(state.finished_at for state in run.steps.values())):
            if at is not None:
                signs.setdefault(run.run_id, []).append(at.timestamp() - it.wall)
    return signs


def logs_are_complete(it: Evidence) -> Verdict:
    """I5. Every line whose attempt reported is stored once, in order; a follower saw what is stored."""
    verdict = Verdict("I5 logs complete")
    ends = {line.numbers: line for line in it.journal if line.kind == "end"}
    lines, whole = 0, 0
    for run_id, stored in it.logs.items():
        lines += len(stored)
        writers: dict[Numbers, list[tuple[int | None, str]]] = {}
        for line in stored:
            if line.seq is None:
                continue  # of another SDK, which numbers nothing
            writers.setdefault((run_id, line.step, line.attempt, line.takeover), []).append((line.seq, line.message))
        for numbers, said in writers.items():
            if [seq for seq, _ in said] != list(range(1, len(said) + 1)):
                verdict.wrong.append(f"the lines of {named(numbers)} are numbered {[seq for seq, _ in said]}")
        for numbers, end in ends.items():
            if numbers[0] != run_id or not _reported(it, numbers):
                continue
            whole += 1
            mine = [text for _, text in writers.get(numbers, []) if text.startswith("line ")]
            if mine != [f"line {number + 1}" for number in range(end.lines)]:
                verdict.wrong.append(f"{named(numbers)} logged {end.lines} lines; stored are {len(mine)}: {mine[-3:]}")
    verdict.wrong += _followers_missed(it)
    verdict.counted = f"{lines} lines of {len(it.logs)} runs, {whole} attempts whole, {len(it.followed)} followers"
    return verdict


def _followers_missed(it: Evidence) -> Iterator[str]:
    """A follower saw what is stored, but for what a worker that was taken over stored after the run's end."""
    for followed in it.followed:
        stored = it.logs.get(followed.run_id, [])
        seen = [line.id for line in followed.lines]
        if followed.error:
            yield f"the follower of {followed.run_id} failed: {followed.error}"
            continue
        last = max(seen, default=0)
        late = [line for line in stored if line.id > last]
        owed = [line for line in late if _reported(it, (followed.run_id, line.step, line.attempt, line.takeover))]
        if seen != [line.id for line in stored if line.id <= last] or owed:
            yield f"the follower of {followed.run_id} saw {len(seen)} lines, {len(stored)} are stored: {owed[:3]}"


def _reported(it: Evidence, numbers: Numbers) -> bool:
    """Whether this attempt and takeover's result is the one that was committed."""
    run_id, step, attempt, takeover = numbers
    run = it.runs.get(run_id)
    state = run.steps.get(step) if run else None
    if state is None or state.attempt < attempt:
        return False
    if state.attempt == attempt:
        return state.takeover == takeover and state.reported
    return (run_id, step, attempt, takeover + 1) not in it.claims


def nothing_is_left(it: Evidence) -> Verdict:
    """I6. No sandbox and no process is left, and none was taken away from a run that lived."""
    verdict = Verdict("I6 nothing left")
    verdict.wrong += [f"left behind: {name}" for name in it.left]
    builds = [run for run in it.runs.values() if run.type == "ci-build" and run.event != "delete"]
    for run in builds:
        for step_id, state in run.steps.items():
            if state.status is Status.ERROR and "gone" in state.message and run.cancel is None:
                verdict.wrong.append(f"{step_id} of {run.run_id} lost its sandbox: {state.message}")
    ended = Counter(run.status.value for run in builds)
    verdict.counted = f"{len(builds)} builds in sandboxes ({listed(ended)}), {len(it.left)} left"
    return verdict
