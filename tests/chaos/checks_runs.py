"""The promises about runs: I1, I3, I7 and I8."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from conveyor_runtime.models import ENGINE, Status
from conveyor_runtime.models.message import H_REASON
from tests.chaos.evidence import Evidence
from tests.chaos.journal import Line
from tests.chaos.verdict import SLACK, Verdict, listed
from tests.chaos.worker import TYPE


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
        f"{len(it.ops)} requests ({listed(outcomes)}), runs that answered writes led to: {listed(ended)},"
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
            if run.finished_at.timestamp() - it.wall > later.at + SLACK:
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
    verdict.counted = f"owed by {sum(owed.values())} runs ({listed(owed)})"
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
            if state.status is Status.ERROR and state.deaths < 5 and run.cancel is None:
                verdict.wrong.append(f"{step_id} of {run.run_id} ended as Error: {state.message}")
            if state.attempt > 3 or state.deaths > 5 or state.takeover - state.deaths > 20:
                verdict.wrong.append(f"{step_id} of {run.run_id}: attempt {state.attempt}, {state.deaths} deaths")
    deaths = Counter(state.deaths for run in it.runs.values() for state in run.steps.values() if state.deaths)
    verdict.counted = f"{len(poisoned)} poisoned runs, {len(it.letters)} letters, steps by deaths: {listed(deaths)}"
    return verdict
