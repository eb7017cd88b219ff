"""A record as it is stored, decoded when somebody looks at it."""

from __future__ import annotations

from typing import Generic, TypeVar

from conveyor_runtime.models import Model

M = TypeVar("M", bound=Model)


class Versioned(Generic[M]):
    """A record and the revision it was written at, decoded on first use."""

    __slots__ = ("_model", "_raw", "_record", "revision", "set_aside")

    def __init__(self, revision: int, model: type[M], raw: bytes, record: M | None = None) -> None:
        self.revision = revision
        self.set_aside = False
        """Found to be undecodable."""
        self._model = model
        self._raw = raw
        self._record = record

    @property
    def record(self) -> M:
        """The decoded record. Raises pydantic's ValidationError if it is none."""
        if self._record is None:
            self._record = self._model.model_validate_json(self._raw)
        return self._record

    def look(self) -> M:
        """As `record`, but not kept: for whoever looks at many once."""
        return self._record or self._model.model_validate_json(self._raw)

    def forget(self) -> None:
        """Keep only the stored bytes."""
        self._record = None

    def decoded(self, record: M) -> None:
        """Take over what was written, so that it need not be decoded."""
        self._record = self._record or record

    @property
    def raw(self) -> bytes:
        """The stored bytes."""
        return self._raw
