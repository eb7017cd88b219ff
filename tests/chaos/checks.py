"""Each promise, judged from what is left. A check returns what it counted and what it found wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from conveyor_runtime.models import ENGINE, Claim, Status
from conveyor_runtime.models.message import H_REASON
from tests.chaos.evidence import Evidence, Numbers
from tests.chaos.fleet import Life, Member
from tests.chaos.journal import Line
from tests.chaos.worker import TYPE

#: Seconds after a worker's death within which somebody else must have its work, whatever else is broken meanwhile.
TAKEN_OVER_WITHIN = 90.0

#: Seconds by which what two processes noted of one moment may differ.
_SLACK = 0.3

#: Seconds a connection must have been in trouble for its worker to be taken for dead, or to give up by itself.
_CUT_OFF = 15.0


@dataclass
class Verdict:
    """One line of the report. `wrong` is empty if the promise was kept."""

    name: str
    counted: str = ""
    wrong: list[str] = field(default_factory=list)


def all_checks() -> list[Callable[[Evidence], Verdict]]:
    """Every promise, in order."""
    return [
        accepted_writes_end,
        nothing_twice,
        one_run_per_resource,
        dead_workers_are_replaced,
        logs_are_complete,
        nothing_is_left,
        finally_steps_ran,
        poison_is_bounded,
    ]


def accepted_writes_end(it: Evidence) -> Verdict:
    """I1. What was answered 2xx led to a run that is terminal; the resource is as the last writer left it."""
    verdict = Verdict("I1 accepted writes end")
    verdict.wrong += [f"not ended {it.waited:.0f} s after everything was whole: {text}" for text in it.unfinished]
    answered = [op for op in it.ops if op.outcome == "ok"]
    ended: Counter[str] = Counter()
    for op in answered:
        if not op.run_id:
            continue
        run = it.runs.get(op.run_id)
        if run is None:
            verdict.wrong.append(f"{op.verb} of {op.name} was answered with run {op.run_id}, which there is not")
        elif not run.status.terminal:
            verdict.wrong.append(f"{op.verb} of {op.name} led to run {op.run_id}, which is {run.status}")
        else:
            ended[run.status.value] += 1
    for type_, name in sorted({(op.type, op.name) for op in it.ops}):
        verdict.wrong += _final_state(it, type_, name)
    outcomes = Counter(op.outcome for op in it.ops)
    verdict.wrong += [f"the API failed: {op.verb} {op.name}: {op.text}" for op in it.ops if op.outcome == "fault"]
    verdict.counted = (
        f"{len(it.ops)} requests ({_listed(outcomes)}), runs that answered writes led to: {_listed(ended)},"
        f" all quiet after {it.waited:.1f} s"
    )
    return verdict


def _final_state(it: Evidence, type_: str, name: str) -> Iterator[str]:
    """The resource holds what the last answered write made of it, or what an unanswered one may have."""
    writes = [op for op in it.ops if (op.type, op.name) == (type_, name) and op.spec is not None]
    done = [op for op in writes if op.outcome == "ok"]
    maybe = {op.spec for op in writes if op.outcome not in ("ok", "refused")}
    found = it.resources.get((type_, name))
    now = found.spec["number"] if found else 0
    # Two writers who know nothing of each other: the last answer of either may be the one that counts.
    latest = {op.spec for op in (done[-3:] if name in it.shared else done[-1:])} or {0}
    if now not in latest | maybe:
        yield f"{type_}/{name} is {now or 'gone'}; the last writes answered made it {sorted(latest, key=str)}"
    if found is None:
        return
    generations = [run.generation for run in it.runs.values() if (run.type, run.name) == (type_, name)]
    if found.generation > max(generations, default=0):
        yield f"{type_}/{name} is at generation {found.generation}, of which there is no run"


def nothing_twice(it: Evidence) -> Verdict:
    """I2. No attempt and takeover starts twice; nobody starts while another may still be at it, who is not frozen."""
    verdict = Verdict("I2 nothing twice")
    starts = [line for line in it.journal if line.kind == "start"]
    for numbers, count in Counter(line.numbers for line in starts).items():
        if count > 1:
            verdict.wrong.append(f"{_named(numbers)} was started {count} times")
    lives = it.fleet.lives()
    ends = {line.numbers: line.at for line in it.journal if line.kind == "end"}
    frozen = 0
    for line, later in _pairs(starts):
        member, life = lives[line.pid]
        until = min(ends.get(line.numbers, float("inf")), life.ended or float("inf"))
        if until <= later.at + _SLACK:
            continue
        if any(span.covers(later.at, _SLACK) for span in life.frozen):
            frozen += 1
            continue
        verdict.wrong.append(
            f"{_named(later.numbers)} started at {later.at:.2f} (pid {later.pid}) while {_named(line.numbers)}"
            f" of {member.name} (pid {line.pid}, since {line.at:.2f}) went on until {until:.2f}"
        )
    verdict.wrong += list(_ends_refused(it))
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


def _ends_refused(it: Evidence) -> Iterator[str]:
    """Work taken from a worker that was neither dead nor cut off, and results that are not those of the last."""
    for (run_id, step, attempt, takeover), claim in it.claims.items():
        before = it.claims.get((run_id, step, attempt, takeover - 1))
        if takeover and before is not None and not before.given_up and not _was_in_trouble(it, before, claim):
            yield f"{_named((run_id, step, attempt, takeover))} was taken from a healthy worker: {before}"
    for run in it.runs.values():
        for step_id, state in run.steps.items():
            data = state.data
            if run.type == TYPE and isinstance(data, dict) and data.get("takeover") != state.takeover:
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


def one_run_per_resource(it: Evidence) -> Verdict:
    """I3. Of one resource, no run starts before the one before it has ended, and none after its delete's."""
    verdict = Verdict("I3 one run per resource")
    first: dict[str, dict[str, Line]] = {}
    for line in it.journal:
        if line.kind == "start":
            first.setdefault(line.resource_id, {}).setdefault(line.run_id, line)
    superseded = 0
    for resource_id, runs in first.items():
        order = sorted(runs.values(), key=lambda line: line.at)
        for earlier, later in pairwise(order):
            run = it.runs.get(earlier.run_id)
            if run is None or run.finished_at is None:
                continue  # I1 says it
            if run.finished_at.timestamp() - it.wall > later.at + _SLACK:
                verdict.wrong.append(f"run {later.run_id} of {resource_id} began before {run.run_id} had ended")
        deletes = [index for index, line in enumerate(order) if line.event == "delete"]
        if deletes and any(line.event != "delete" for line in order[deletes[0] :]):
            verdict.wrong.append(f"resource {resource_id} was worked on after its delete: {order}")
    for run in it.runs.values():
        superseded += run.reason.startswith("superseded by")
    verdict.counted = (
        f"{len(first)} resources, {sum(map(len, first.values()))} runs begun, {superseded} superseded,"
        f" {sum(run.event == 'delete' for run in it.runs.values())} deletes"
    )
    return verdict


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
            verdict.wrong.append(f"{_named(numbers)} waited {wait:.1f} s after {member.name} had died")
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
            writers.setdefault((run_id, line.step, line.attempt, line.takeover), []).append((line.seq, line.message))
        for numbers, said in writers.items():
            if [seq for seq, _ in said] != list(range(1, len(said) + 1)):
                verdict.wrong.append(f"the lines of {_named(numbers)} are numbered {[seq for seq, _ in said]}")
        for numbers, end in ends.items():
            if numbers[0] != run_id or not _reported(it, numbers):
                continue
            whole += 1
            mine = [text for _, text in writers.get(numbers, []) if text.startswith("line ")]
            if mine != [f"line {number + 1}" for number in range(end.lines)]:
                verdict.wrong.append(f"{_named(numbers)} logged {end.lines} lines; stored are {len(mine)}: {mine[-3:]}")
    for followed in it.followed:
        stored_ids = [line.id for line in it.logs.get(followed.run_id, [])]
        if followed.error:
            verdict.wrong.append(f"the follower of {followed.run_id} failed: {followed.error}")
        elif [line.id for line in followed.lines] != stored_ids:
            verdict.wrong.append(
                f"the follower of {followed.run_id} saw {len(followed.lines)} lines, {len(stored_ids)} are stored"
            )
    verdict.counted = f"{lines} lines of {len(it.logs)} runs, {whole} attempts whole, {len(it.followed)} followers"
    return verdict


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
    verdict.counted = f"{len(builds)} builds in sandboxes ({_listed(ended)}), {len(it.left)} left"
    return verdict


def finally_steps_ran(it: Evidence) -> Verdict:
    """I7. Where a worker had begun a run, its `finally` step was worked on to its end."""
    verdict = Verdict("I7 finally ran")
    begun = {numbers[0] for numbers, claim in it.claims.items() if claim.instance != ENGINE}
    ended = {line.numbers[:2] for line in it.journal if line.kind == "end" and line.how == "done"}
    owed: Counter[str] = Counter()
    for run in it.runs.values():
        for step in run.plan or ():
            if not step.finally_ or run.run_id not in begun or not run.status.terminal:
                continue
            owed[run.status.value] += 1
            state = run.steps[step.id]
            if state.status is not Status.SUCCEEDED:
                verdict.wrong.append(f"{step.id} of {run.run_id} ({run.status}) is {state.status}: {state.message}")
            elif run.type == TYPE and (run.run_id, step.id) not in ended:
                verdict.wrong.append(f"{step.id} of {run.run_id} is said to have succeeded, but never ran to its end")
    verdict.counted = f"owed by {sum(owed.values())} runs ({_listed(owed)})"
    return verdict


def poison_is_bounded(it: Evidence) -> Verdict:
    """I8. Dead letters only for what nobody could work on, each with its reason; attempts are bounded."""
    verdict = Verdict("I8 poison bounded")
    for letter in it.letters:
        reason = letter.headers.get(H_REASON, "")
        if not reason:
            verdict.wrong.append(f"letter {letter.seq} says no reason")
        elif "died" not in reason and letter.data != b"no JSON":
            verdict.wrong.append(f"letter {letter.seq} on {letter.subject}: {reason}")
    poisoned = [run for run in it.runs.values() if run.name == "poison"]
    for run in poisoned:
        if run.steps["one"].status is not Status.ERROR or run.steps["one"].deaths != 5:
            verdict.wrong.append(f"the poisoned run {run.run_id} ended as {run.status}: {run.reason}")
    for run in it.runs.values():
        for step_id, state in run.steps.items():
            if state.status is Status.ERROR and state.deaths < 5:
                verdict.wrong.append(f"{step_id} of {run.run_id} ended as Error: {state.message}")
            if state.attempt > 3 or state.deaths > 5 or state.takeover - state.deaths > 20:
                verdict.wrong.append(f"{step_id} of {run.run_id}: attempt {state.attempt}, {state.deaths} deaths")
    deaths = Counter(state.deaths for run in it.runs.values() for state in run.steps.values() if state.deaths)
    verdict.counted = f"{len(poisoned)} poisoned runs, {len(it.letters)} letters, steps by deaths: {_listed(deaths)}"
    return verdict


def _named(numbers: Numbers) -> str:
    run_id, step, attempt, takeover = numbers
    return f"{step} of {run_id} (attempt {attempt}, takeover {takeover})"


def _listed(counts: Counter[str] | Counter[int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=str)) or "none"
