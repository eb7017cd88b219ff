"""What clients write, checked before anything is stored: the draft of a resource, and the plan its runs will have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from conveyor_runtime.engine import plans
from conveyor_runtime.engine.definitions import Definitions
from conveyor_runtime.engine.validation import PIPELINE, check_size, parse
from conveyor_runtime.errors import InvalidInput, Problem, Unprocessable
from conveyor_runtime.models import NAME_RULE, PipelineSpec, PlannedStep, ResourceRecord, is_name
from conveyor_runtime.models.message import META_OUTPUT, META_RESULT
from conveyor_runtime.store import State


@dataclass(frozen=True)
class Draft:
    """A resource as a client wrote it. `metadata` None = left out: what is stored stays."""

    type: str
    name: str
    spec: Any
    pipeline: str | None = None
    metadata: Mapping[str, str] | None = None
    priority: int = 0


class DraftChecker:
    """Checks drafts against what is defined."""

    def __init__(self, state: State, definitions: Definitions) -> None:
        self._state = state
        self._definitions = definitions
        self._validator = definitions.validator

    async def check(self, draft: Draft) -> tuple[Draft, tuple[PlannedStep, ...] | None]:
        """The draft as it will be stored, and the plan of its runs (None = a direct run)."""
        check_names(draft)
        draft = replace(draft, pipeline=draft.pipeline or None, metadata=own_metadata(draft.metadata))
        if draft.type == PIPELINE:
            return await self._check_pipeline(draft), None
        definition = await self._definitions.find(draft.type)
        if definition is None:
            raise Unprocessable(f"there is no resource definition named {draft.type}; apply one first")
        self._validator.check(definition, draft.spec)
        pipeline = draft.pipeline or definition.pipeline
        return draft, await self._plan(draft.type, pipeline) if pipeline else None

    async def _check_pipeline(self, draft: Draft) -> Draft:
        check_size(draft.spec)
        spec = parse(PipelineSpec, draft.spec, "the pipeline", at="/spec", extra="forbid").with_ids()
        if await self._definitions.find(spec.resource) is None:
            raise Unprocessable(f"there is no resource definition named {spec.resource}, which the pipeline is for")
        stored = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        return replace(draft, spec=stored, pipeline=None)

    async def _plan(self, type_: str, pipeline: str) -> tuple[PlannedStep, ...]:
        if not is_name(pipeline):
            raise InvalidInput(f"pipeline: must be {NAME_RULE}", [Problem("/pipeline", f"must be {NAME_RULE}")])
        found = self._state.view.resource(PIPELINE, pipeline) or await self._state.resource(PIPELINE, pipeline)
        if found is None:
            raise Unprocessable(f"there is no pipeline named {pipeline}")
        spec = PipelineSpec.model_validate(found.record.spec)
        if spec.resource != type_:
            problem = f"pipeline {pipeline} is for {spec.resource}, not for {type_}"
            raise InvalidInput(problem, [Problem("/pipeline", problem)])
        return plans.plan_pipeline(spec)

    async def plan_of(self, record: ResourceRecord) -> tuple[PlannedStep, ...] | None:
        """The plan of a stored resource's runs as things are now; None = a direct run. Raises InvalidInput,
        Unprocessable."""
        pipeline = await self._definitions.pipeline_of(record)
        return await self._plan(record.type, pipeline) if pipeline and record.type != PIPELINE else None

    async def cleaners(self, record: ResourceRecord, fleet: plans.Fleet) -> tuple[PlannedStep, ...]:
        """The plan of a stored resource's delete; of a pipeline that is gone nobody can say who took part."""
        try:
            pipeline = await self.plan_of(record) or ()
        except (InvalidInput, Unprocessable):
            pipeline = ()
        return plans.plan_delete(record.type, pipeline, fleet)


def check_names(draft: Draft) -> None:
    """Raises InvalidInput if what is to stand in keys and subjects cannot: to be asked before anything is looked up."""
    for field, value in (("name", draft.name), ("resource", draft.type)):
        if not isinstance(value, str) or not is_name(value):
            raise InvalidInput(f"{field}: must be {NAME_RULE}", [Problem(f"/{field}", f"must be {NAME_RULE}")])


def own_metadata(metadata: Mapping[str, str] | None) -> dict[str, str] | None:
    """The client's own metadata: what the runtime adds when it shows a resource is taken off again."""
    if metadata is None:
        return None
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidInput("metadata values must be strings", [Problem(f"/metadata/{key}", "must be a string")])
    return {
        key: value
        for key, value in metadata.items()
        if key != "version" and not key.startswith((META_RESULT, META_OUTPUT, "cv."))
    }
