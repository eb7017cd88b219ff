"""The contract of a state store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Write:
    """One key's change. `value` None deletes the key.

    `expect` is the revision the key must have: 0 = it must not exist, None = whatever it is.
    """

    key: str
    value: bytes | None
    expect: int | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A key's value and the revision it was written at."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """A key's newest state as a watcher sees it; `value` None = deleted."""

    key: str
    value: bytes | None
    revision: int


class Watch(Protocol):
    """Every key's present state, then each change, in the order of revisions, without gap or repeat."""

    def __aiter__(self) -> AsyncIterator[Change]: ...

    async def wait_caught_up(self) -> None:
        """Until the state as of the start has been handed over."""

    async def aclose(self) -> None: ...


class Store(Protocol):
    """Keys, values, revisions. Revisions rise by every write in the whole store, never per key."""

    async def get(self, key: str) -> Stored | None:
        """The newest value, read from the leader. Raises BusUnavailable if that cannot be known."""

    async def commit(self, unit: Sequence[Write], *, timeout: float = 10.0) -> list[int]:
        """Write the whole unit or nothing; the revisions, in order.

        Raises RevisionConflict if an expectation failed, BusUnavailable if the outcome is unknown. A unit that was
        stored although its answer got lost is recognised as our own and answered as success.
        """

    async def list(self, prefix: str) -> list[Stored]:
        """The newest values of all keys that begin with `prefix` (whole parts, such as `instance.`)."""

    async def purge(self, prefix: str) -> None:
        """Forget all keys that begin with `prefix` (whole parts) at once. Watchers are not told."""

    def watch(self) -> Watch: ...
