"""What is in use is not deleted: its users could not be updated or run any more, and nobody would know why."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from conveyor_runtime.engine.validation import PIPELINE
from conveyor_runtime.errors import Conflict
from conveyor_runtime.store import State, View

#: Users that a refusal names.
_NAMED = 3


async def refuse_used_definition(state: State, name: str) -> None:
    """Raises Conflict if there are resources of this type, save those that are being deleted."""
    await state.view.wait_for(None)
    used_by = (f"{name}/{it.record.name}" for it in state.view.resources(name) if not it.record.deleting)
    _refuse(f"definition {name}", used_by, "delete them first")


async def refuse_used_pipeline(state: State, name: str) -> None:
    """Raises Conflict if resources take this pipeline, or will because it is their type's own."""
    await state.view.wait_for(None)
    _refuse(
        f"pipeline {name}", _users_of_pipeline(state.view, name), "give them another pipeline, or delete them first"
    )


def _users_of_pipeline(view: View, name: str) -> Iterator[str]:
    yield from (f"definition {it.name}" for it in view.definitions() if it.pipeline == name)
    for found in view.resources():
        record = found.record
        if record.type != PIPELINE and record.pipeline == name and not record.deleting:
            yield f"{record.type}/{record.name}"


def _refuse(title: str, used_by: Iterator[str], mend: str) -> None:
    users = list(islice(used_by, _NAMED + 1))
    if users:
        more = " and others" if len(users) > _NAMED else ""
        raise Conflict(f"{title} is used by {', '.join(users[:_NAMED])}{more}; {mend}")
