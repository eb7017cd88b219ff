"""A pool of networks among which containers are spread."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from conveyor_runtime.errors import ConfigError

__all__ = ["Networks"]


class Networks:
    """Gives out the network with the fewest containers. A bridge takes 1023 of them and slows down long before: fn
    spread its containers in the same way."""

    def __init__(self, names: Iterable[str]) -> None:
        """Raises `ConfigError` for none, or for a name that comes twice."""
        self.names = tuple(names)
        self._coming: Counter[str] = Counter()
        if not self.names or len(set(self.names)) != len(self.names):
            raise ConfigError(f"a pool of networks needs names that differ, not {list(self.names)}")

    @contextmanager
    def use(self, there: Mapping[str, int]) -> Iterator[str]:
        """One of the least used, chance deciding between equals. `there` is how many containers each network has; those
        about to come count too, for as long as the context lasts."""
        uses = {name: there.get(name, 0) + self._coming[name] for name in self.names}
        fewest = min(uses.values())
        name = random.choice([name for name, used in uses.items() if used == fewest])  # noqa: S311 - no secret
        self._coming[name] += 1
        try:
            yield name
        finally:
            self._coming[name] -= 1
