"""Records as clients see them."""

from __future__ import annotations

from typing import Any

from conveyor_runtime.api.shapes import PipelineView, QueueEntry, ResourceView, StepShape
from conveyor_runtime.engine import Engine, describe_run
from conveyor_runtime.models import PipelineSpec, ResourceRecord, Run, RunRecord
from conveyor_runtime.models.message import META_RESULT, encode_driver_result
from conveyor_runtime.store import State


def resource_fields(record: ResourceRecord, results: dict[str, str] | None = None) -> dict[str, Any]:
    """The members of a resource's answer; `results` go into its metadata."""
    resource = record.as_resource()
    return ResourceView(
        id=resource.id,
        name=resource.name,
        pipeline=resource.pipeline,
        resource=resource.resource,
        metadata={**resource.metadata, **(results or {})},
        spec=resource.spec,
        priority=record.priority,
        generation=record.generation,
        observed_generation=record.observed_generation,
        active_run=record.active.run_id if record.active else None,
        last_run=record.last_run,
        queue=[
            QueueEntry(run_id=it.run_id, event=it.event, generation=it.generation, due=it.due) for it in record.queue
        ],
        deleting=record.deleting,
        created_at=record.created_at,
        updated_at=record.updated_at,
    ).__dict__


async def driver_results(state: State, record: ResourceRecord) -> dict[str, str]:
    """What the drivers of the active run (else the last one) have reported, as Conveyor writes it into metadata."""
    run_id = record.active.run_id if record.active else record.last_run
    found = (state.view.run(run_id) or await state.run(run_id)) if run_id else None
    if found is None:
        return {}
    results = {}
    for step in found.record.plan or ():
        done = found.record.steps.get(step.id)
        if done is None or not done.reported:
            continue
        data = await state.step_data(done)
        said = encode_driver_result(step.driver, done.status, done.message, data)
        results[META_RESULT + step.driver] = said.decode()
    return results


async def whole_run(engine: Engine, run: RunRecord) -> Run:
    """A run with all its data."""
    state = engine.state
    data = {step.data_key: await state.step_data(step) for step in run.steps.values() if step.data_key is not None}
    return describe_run(run, state.view, data, is_dead=engine.liveness.is_dead)


def listed_run(engine: Engine, run: RunRecord) -> Run:
    """A run as lists show it: without the data of its steps."""
    view = describe_run(run, engine.state.view, is_dead=engine.liveness.is_dead)
    return view.model_copy(update={"steps": tuple(step.model_copy(update={"data": None}) for step in view.steps)})


def pipeline_view(record: ResourceRecord) -> PipelineView:
    """A resource of type `pipeline` as Conveyor shows pipelines."""
    spec = PipelineSpec.model_validate(record.spec)
    fields = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return PipelineView(
        name=record.name,
        description=spec.description,
        version=spec.version,
        resource=spec.resource,
        steps=[StepShape(**step) for step in fields["steps"]],
        finally_=[StepShape(**step) for step in fields["finally"]] or None,
        metadata=spec.metadata,
        revision=record.revision,
        deleting=record.deleting,
    )
