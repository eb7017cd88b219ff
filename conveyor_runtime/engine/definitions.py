"""Resource definitions: stored, found, the built-in one among them."""

from __future__ import annotations

import uuid_utils

from conveyor_runtime.engine.validation import PIPELINE, SpecValidator, builtin_definition
from conveyor_runtime.errors import Conflict, InvalidInput, NotFound, Problem, RevisionConflict
from conveyor_runtime.models import NAME_RULE, ResourceDefinition, ResourceRecord, is_name
from conveyor_runtime.store import Put, State, keys


class Definitions:
    """Definitions by the type they define. `validator` has their schemas compiled."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.validator = SpecValidator()

    def known(self, type_: str) -> ResourceDefinition | None:
        """The definition of a type, the built-in one included."""
        if type_ == PIPELINE:
            return builtin_definition()
        found = self._state.view.definition(type_)
        return found.record if found else None

    async def write(
        self, definition: ResourceDefinition, *, may_exist: bool, must_exist: bool = False
    ) -> tuple[ResourceDefinition, int]:
        """Store a definition; the stored one and its revision. Raises InvalidInput, Conflict, NotFound."""
        name = definition.name
        if not is_name(name):
            raise InvalidInput(f"name: must be {NAME_RULE}", [Problem("/name", f"must be {NAME_RULE}")])
        if name == PIPELINE:
            raise Conflict(f"the type {PIPELINE} is built in and cannot be redefined")
        self.validator.check_schema(definition)
        while True:
            found = await self._state.definition(name)
            if found is None and must_exist:
                raise NotFound(f"there is no resource definition named {name}")
            if found is not None and not may_exist:
                raise Conflict(f"a resource definition named {name} exists already")
            definition = definition.model_copy(update={"id": found.record.id if found else str(uuid_utils.uuid4())})
            if found is not None and found.record == definition:
                return definition, found.revision
            try:
                put = Put(keys.definition(name), definition, found.revision if found else 0)
                [revision] = await self._state.commit(put)
            except RevisionConflict:
                continue
            return definition, revision

    async def delete(self, name: str) -> int:
        """Remove a definition. The revision of the delete. Raises NotFound."""
        if name == PIPELINE:
            raise Conflict(f"the type {PIPELINE} is built in and cannot be deleted")
        if await self._state.definition(name) is None:
            raise NotFound(f"there is no resource definition named {name}")
        [revision] = await self._state.commit(Put(keys.definition(name), None))
        return revision

    async def find(self, type_: str) -> ResourceDefinition | None:
        """The definition of a type, from the store if this process has not heard of it yet."""
        known = self.known(type_)
        if known is not None:
            return known
        found = await self._state.definition(type_)
        return found.record if found else None

    async def pipeline_of(self, record: ResourceRecord) -> str | None:
        """The pipeline a resource's runs take: its own, else its type's default."""
        definition = None if record.pipeline else await self.find(record.type)
        return record.pipeline or (definition.pipeline if definition else None)
