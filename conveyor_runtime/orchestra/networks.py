"""A pool of networks among which containers are spread."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from conveyor_runtime.errors import ConfigError

__all__ = ["Networks"]


class Networks:
    """Gives out the network with the fewest containers. A bridge takes 1023 of them and slows down long before: fn
    spread its containers in the same way."""

    def __init__(self, names: Iterable[str]) -> None:
        """Raises `ConfigError` for none, or for a name that comes twice."""
        listed = list(names)
        self._uses = dict.fromkeys(listed, 0)
        if not listed or len(self._uses) != len(listed):
            raise ConfigError(f"a pool of networks needs names that differ, not {listed}")

    @property
    def uses(self) -> dict[str, int]:
        """How many containers each has."""
        return dict(self._uses)

    @contextmanager
    def use(self) -> Iterator[str]:
        """One of the least used, chance deciding between equals, for as long as the context lasts."""
        fewest = min(self._uses.values())
        name = random.choice([name for name, uses in self._uses.items() if uses == fewest])  # noqa: S311 - no secret
        self._uses[name] += 1
        try:
            yield name
        finally:
            self._uses[name] -= 1
