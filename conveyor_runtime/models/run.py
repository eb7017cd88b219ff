"""Runs as the state bucket keeps them, and the claims of those who work on them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from conveyor_runtime.models.base import Model
from conveyor_runtime.models.resource import Resource
from conveyor_runtime.models.result import Status, StepResult

#: A claim held by the engine itself, so that no worker can start the attempt any more.
ENGINE = "engine"


def run_made_at(run_id: str) -> datetime | None:
    """When the run was made, by the time in its id (a UUIDv7); None where another hand made the id."""
    try:
        made = uuid.UUID(run_id)
    except ValueError:
        return None
    return datetime.fromtimestamp((made.int >> 80) / 1000, UTC) if made.version == 7 else None


class PlannedStep(Model):
    """A step as the run pinned it. `needs` are the ids of steps that must have ended first."""

    id: str
    name: str = ""
    driver: str
    needs: tuple[str, ...] = ()
    finally_: bool = Field(default=False, alias="finally")
    timeout: float | None = None
    queue_timeout: float | None = None


class StepState(Model):
    """Where a step of a run stands.

    `attempt` is 0 until the step is opened; `takeover` counts hand-overs of this attempt, `deaths` those because the
    worker died; `issue` counts publications of its dispatch, 0 = not yet published because no driver could take it.
    `node` is where the dispatch goes (None = anywhere), `claimed_node` where the latest known claim was, `stays` where
    what it started goes on after the run. `queued_at` is
    since when a worker is waited for, where that has a limit. `due` is when it goes on (`goes_on_at`), or of a foreign
    driver's step, when its time is over.
    """

    status: Status = Status.PENDING
    attempt: int = 0
    takeover: int = 0
    deaths: int = 0
    issue: int = 0
    issued_at: datetime | None = None
    queued_at: datetime | None = None
    node: str | None = None
    claimed_node: str | None = None
    due: datetime | None = None
    foreign_seq: int | None = None
    message: str = ""
    exit_code: int | None = None
    data: Any = None
    data_key: str | None = None
    instance: str | None = None
    stays: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def open(self) -> bool:
        """Whether an attempt of it is under way (or waits for a worker)."""
        return self.attempt > 0 and self.status is Status.PENDING

    @property
    def goes_on_at(self) -> datetime | None:
        """When its next attempt is opened, or the one that killed several workers is dispatched again; None if it waits
        for no time."""
        waits = self.status is Status.AWAITING_RETRY or (self.open and self.issue == 0)
        return self.due if waits else None

    @property
    def reported(self) -> bool:
        """Whether it ended by a result of its driver: without an instance, it was the engine that ended it."""
        return self.status.terminal and self.instance is not None


#: A step of which the record says nothing yet. One for all: making one costs more than most of what is asked of it.
_UNOPENED = StepState()


class Cancel(Model):
    """Who asked for the end of a run, and why."""

    who: str
    why: str
    at: datetime

    @property
    def reason(self) -> str:
        """What is said of a run that ended, or is ending, by it."""
        return f"cancelled by {self.who}: {self.why}".rstrip(": ")


class RunRecord(Model):
    """`run.<run_id>`: plan, progress and outbox of one run.

    `status` is always written, and before anything a user can fill: the view reads it without decoding the rest.
    `resource` is pinned as of its generation; above 4 KiB it lies in `input.<run_id>` and is None here. `plan` is None
    while a direct run waits for the first driver that takes its type. `home` is the node of the resource's service.
    """

    run_id: str
    type: str
    name: str
    event: str
    generation: int
    status: Status
    reason: str = ""
    pipeline: str | None = None
    resource: Resource | None = None
    priority: int = 0
    plan: tuple[PlannedStep, ...] | None = None
    home: str | None = None
    steps: dict[str, StepState] = Field(default_factory=dict)
    cancel: Cancel | None = None
    requeue_after: float | None = None
    created_at: datetime
    finished_at: datetime | None = None

    def step(self, step_id: str) -> PlannedStep:
        """The planned step of that id. Raises KeyError."""
        for step in self.plan or ():
            if step.id == step_id:
                return step
        raise KeyError(step_id)

    def state(self, step_id: str) -> StepState:
        """Where that step stands, opened or not."""
        return self.steps.get(step_id, _UNOPENED)

    def open_steps(self) -> Iterator[tuple[PlannedStep, StepState]]:
        """Steps with an attempt under way, in the order of the plan."""
        for step in self.plan or ():
            state = self.steps.get(step.id)
            if state is not None and state.open:
                yield step, state

    def is_open_at(self, step_id: str, attempt: int, takeover: int) -> bool:
        """Whether the step is open at just this attempt and takeover."""
        state = self.state(step_id)
        return not self.status.terminal and state.open and (state.attempt, state.takeover) == (attempt, takeover)

    def awaits(self, result: StepResult) -> bool:
        """Whether this result belongs to an open step of the run, at its present attempt and takeover."""
        return result.run_id == self.run_id and self.is_open_at(result.step, result.attempt, result.takeover)

    def cancels(self, step: PlannedStep) -> bool:
        """Whether the run's cancel speaks of this step: it never does of `finally` steps."""
        return self.cancel is not None and not step.finally_


class Claim(Model):
    """`claim.<run>.<step>.<attempt>.<takeover>`: who works on it.

    `instance` is `engine` where the engine ended it. `given_up` and `timed_out` are written beside the instance by a
    worker that stops without a result.
    """

    instance: str
    node: str | None = None
    at: datetime
    given_up: bool = False
    timed_out: bool = False
    why: str = ""
