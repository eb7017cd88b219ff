"""A run as people and clients see it: what the record says, and what claims, drivers and leases add to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from conveyor_runtime.models import ENGINE, Claim, Run, RunRecord, RunResource, RunStep, Status, StepState
from conveyor_runtime.store import View


def describe_run(
    run: RunRecord, view: View, data: Mapping[str, Any] | None = None, *, is_dead: Callable[[str], bool]
) -> Run:
    """What is true of `run` now. `data` maps data keys to values kept outside the record, `is_dead` judges a lease."""
    claims = dict(view.claims_of(run.run_id))
    steps = [_describe_step(run, step.id, claims, view, data or {}, is_dead) for step in run.plan or ()]
    starts = [step.started_at for step in steps if step.started_at is not None]
    status, reason = _status(run, steps, view)
    return Run(
        run_id=run.run_id,
        status=status,
        reason=reason,
        event=run.event,
        resource=RunResource(resource=run.type, name=run.name, generation=run.generation),
        pipeline=run.pipeline,
        priority=run.priority,
        created_at=run.created_at,
        started_at=min(starts, default=None),
        finished_at=run.finished_at,
        steps=steps,
    )


def _describe_step(
    run: RunRecord,
    step_id: str,
    claims: Mapping[tuple[str, int, int], Claim],
    view: View,
    data: Mapping[str, Any],
    is_dead: Callable[[str], bool],
) -> RunStep:
    planned, state = run.step(step_id), run.state(step_id)
    claim = claims.get((step_id, state.attempt, state.takeover))
    if claim is not None and claim.instance == ENGINE:
        claim = None
    status, message, started = state.status, state.message, state.started_at
    if state.open and not run.status.terminal:
        if claim is not None:
            status, started = Status.RUNNING, started or claim.at
        elif state.goes_on_at is not None:
            status, message = Status.AWAITING_RETRY, f"{state.deaths} workers died while they worked on it"
        else:
            message = _why_pending(planned.driver, state, view, is_dead)
    return RunStep(
        id=planned.id,
        name=planned.name or planned.id,
        driver=planned.driver,
        status=status,
        attempt=state.attempt,
        message=message,
        exit_code=state.exit_code,
        node=(claim.node if claim else None) or state.claimed_node or state.node,
        instance=claim.instance if claim else state.instance,
        started_at=started,
        finished_at=state.finished_at,
        data=data.get(state.data_key, state.data) if state.data_key else state.data,
        finally_=planned.finally_,
    )


def _why_pending(driver: str, state: StepState, view: View, is_dead: Callable[[str], bool]) -> str:
    where = f" on node {state.node}" if state.node else ""
    known = view.driver(driver)
    if known is None:
        return f"waits for a driver named {driver}: none has ever registered"
    alive = [
        it.record
        for it in view.instances()
        if it.record.driver == driver
        and not is_dead(it.record.id)
        and (state.node is None or state.node in it.record.nodes)
    ]
    if not alive:
        return f"waits for a {driver} process{where}: none is running (gone for good? conveyor delete driver {driver})"
    holds = [f"at most {known.max_concurrent} runs at once"] if known.max_concurrent else []
    holds += [f"at most {known.rate_limit}"] if known.rate_limit else []
    holds += ["or for room on its node"] if known.uses else []
    return f"waits for a free {driver}{where}" + (f" ({'; '.join(holds)})" if holds else "")


def _status(run: RunRecord, steps: list[RunStep], view: View) -> tuple[Status, str]:
    if run.status.terminal:
        return run.status, run.reason
    if run.cancel is not None:
        return Status.CANCELLING, run.cancel.reason
    resource = view.resource(run.type, run.name)
    active = resource.record.active if resource else None
    if active is None or active.run_id != run.run_id:
        if active is not None:
            return Status.ACCEPTED, f"waits for run {active.run_id} of the same resource"
        return Status.ACCEPTED, run.reason
    if run.plan is None:
        return Status.PENDING, f"waits for a driver that takes {run.event} of {run.type}"
    waiting = next((step for step in steps if step.status is Status.PENDING and step.attempt > 0), None)
    retrying = next((step for step in steps if step.status is Status.AWAITING_RETRY), None)
    moved = any(step.status is not Status.PENDING for step in steps)
    if retrying is not None:
        return Status.RUNNING, f"step {retrying.id} is tried again: {retrying.message}"
    if waiting is not None:
        return (Status.RUNNING if moved else Status.PENDING), f"step {waiting.id} {waiting.message}"
    return (Status.RUNNING if moved else Status.PENDING), ""
