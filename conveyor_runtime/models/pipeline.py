"""Pipelines: which drivers run, in what order."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from conveyor_runtime.models.base import Duration, Model, Name

MAX_STEPS = 100


class Step(Model):
    """One step: known by its id, never by its driver, so a driver may appear twice.

    Without an id it gets its name, else its driver, made unique by a number. `timeout` (seconds) bounds one attempt,
    from the start of user code; `queue_timeout` how long an attempt waits for a worker.
    """

    id: Name = ""
    name: str = ""
    driver: Name
    timeout: Duration | None = None
    queue_timeout: Duration | None = None

    @model_validator(mode="before")
    @classmethod
    def _empty_id(cls, value: Any) -> Any:
        # Go writes a field it was never given as an empty string.
        if isinstance(value, dict) and value.get("id") in ("", None):
            return {key: val for key, val in value.items() if key != "id"}
        return value


class PipelineSpec(Model):
    """The spec of a resource of the built-in type `pipeline`.

    `steps` run one after another; `finally` steps run after them whatever happened: success, failure, timeout, cancel.
    """

    description: str = ""
    version: str = ""
    resource: Name
    steps: tuple[Step, ...] = Field(default=(), max_length=MAX_STEPS)
    finally_: tuple[Step, ...] = Field(default=(), alias="finally", max_length=MAX_STEPS)
    metadata: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_lists(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: (() if val is None and key in ("steps", "finally") else val) for key, val in value.items()}
        return value

    @model_validator(mode="after")
    def _unique_ids(self) -> PipelineSpec:
        explicit = [step.id for step in (*self.steps, *self.finally_) if step.id]
        twice = sorted({step_id for step_id in explicit if explicit.count(step_id) > 1})
        if twice:
            raise ValueError(f"step ids must be unique; used more than once: {', '.join(twice)}")
        return self

    def with_ids(self) -> PipelineSpec:
        """The same pipeline with every step's id filled in."""
        taken = {step.id for step in (*self.steps, *self.finally_) if step.id}

        def fill(step: Step) -> Step:
            if step.id:
                return step
            base = _as_id(step.name) or step.driver
            step_id, number = base, 2
            while step_id in taken:
                step_id, number = f"{base[:120]}-{number}", number + 1
            taken.add(step_id)
            return step.model_copy(update={"id": step_id})

        return self.model_copy(
            update={"steps": tuple(map(fill, self.steps)), "finally_": tuple(map(fill, self.finally_))}
        )


def _as_id(name: str) -> str:
    """A step's name as an id: what may not stand in a subject becomes a dash."""
    text = "".join(char if char.isascii() and (char.isalnum() or char in "_-") else "-" for char in name.strip())
    return text.strip("-")[:128]
