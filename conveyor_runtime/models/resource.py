"""Resources and their definitions: as clients and drivers see them on the wire, and as the state bucket keeps them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic

from pydantic import Field, field_validator
from typing_extensions import TypeVar

from conveyor_runtime.models.base import Model

#: The highest priority; the lowest, and that of resources which name none, is 0.
MAX_PRIORITY = 9

SpecT = TypeVar("SpecT", default=dict[str, Any])


class Resource(Model, Generic[SpecT]):
    """Desired state: `resource` is its type (Conveyor's field name), `spec` is validated by that type's definition.

    Every metadata value is a string and `metadata["version"]` is always there, because Conveyor's SDKs decode a map of
    strings. Earlier results of the run ride in `metadata["driverresults.<driver>"]` as a JSON string.
    """

    id: str = ""
    name: str = ""
    pipeline: str | None = None
    resource: str = ""
    metadata: dict[str, str] = Field(default_factory=dict)
    spec: SpecT = Field(default_factory=dict)  # type: ignore[assignment]

    @field_validator("metadata", mode="before")
    @classmethod
    def _no_null_metadata(cls, value: Any) -> Any:
        return {} if value is None else value

    @property
    def type(self) -> str:
        """The resource's type."""
        return self.resource


class ResourceDefinition(Model):
    """A named JSON Schema that the specs of one type must satisfy.

    `pipeline` is the default pipeline of resources that name none. `queue` says what a newer generation does to older
    ones still waiting: `supersede` ends them unrun, `all` runs every one.
    """

    id: str = ""
    name: str = ""
    description: str = ""
    version: str = ""
    schema_: Any = Field(default=None, alias="schema")
    pipeline: str | None = None
    queue: str = Field(default="supersede", pattern="^(supersede|all)$")


class Entry(Model):
    """One run a resource owes: in `active` or in `queue` until the run is terminal."""

    run_id: str
    event: str
    generation: int
    due: datetime | None = None


class ResourceRecord(Model):
    """`resource.<type>.<name>`: desired state and the runs it owes.

    `generation` counts changes of spec or pipeline, `revision` any change (Conveyor's `metadata.version`).
    `observed_generation` is the newest that a run succeeded with, `ended_generation` the newest that a run ended of,
    however it ended. Of runs that wait for the same driver, those of a higher `priority` are begun first.
    `node` is where its service runs; its steps in sandboxes are worked on there.
    """

    id: str
    type: str
    name: str
    pipeline: str | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    spec: Any = None
    priority: int = 0
    generation: int = 1
    revision: int = 1
    observed_generation: int = 0
    ended_generation: int = 0
    created_at: datetime
    updated_at: datetime
    active: Entry | None = None
    queue: tuple[Entry, ...] = ()
    deleting: bool = False
    last_run: str | None = None
    node: str | None = None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every run still owed, the active one first."""
        return ((self.active,) if self.active else ()) + self.queue

    @property
    def last_delete(self) -> Entry | None:
        """The delete that all else it owes makes way for. One asked for by force comes after one under way, and counts
        before one that waits for its time."""
        deletes = [entry for entry in reversed(self.entries) if entry.event == "delete"]
        return max(deletes, key=lambda entry: entry.due is None, default=None)

    def is_active(self, run_id: str) -> bool:
        """Whether its turn is this run's."""
        return self.active is not None and self.active.run_id == run_id

    def names(self, run_id: str) -> bool:
        """Whether this run is owed, or the last that was."""
        return self.last_run == run_id or any(entry.run_id == run_id for entry in self.entries)

    def as_resource(self) -> Resource:
        """The resource as clients and drivers see it."""
        return Resource(
            id=self.id,
            name=self.name,
            pipeline=self.pipeline,
            resource=self.type,
            metadata={**self.metadata, "version": str(self.revision)},
            spec=self.spec,
        )
