"""Resources and their definitions, as clients and drivers see them on the wire."""

from __future__ import annotations

from typing import Any, Generic

from pydantic import Field, field_validator
from typing_extensions import TypeVar

from conveyor_runtime.models.base import Model

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
