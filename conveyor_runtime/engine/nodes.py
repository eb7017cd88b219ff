"""Nodes that are gone: a step that must meet its sandbox there cannot wait for ever."""

from __future__ import annotations

import time
from collections.abc import Callable

from conveyor_runtime.engine.liveness import Liveness
from conveyor_runtime.store import View

#: Seconds without a live process of the driver on a node after which what must run there is ended.
NODE_GONE = 600.0


class Nodes:
    """Tells how long a driver has had no live process on a node, by what this process has seen on its own clock."""

    def __init__(self, view: View, liveness: Liveness, clock: Callable[[], float] = time.monotonic) -> None:
        self._view = view
        self._liveness = liveness
        self._clock = clock
        self._missing: dict[tuple[str, str], float] = {}
        view.listen(self._noticed)

    def is_gone(self, driver: str, node: str) -> bool:
        """Whether nobody has been there for so long that nobody is waited for any more."""
        watching = self._liveness.watching_since()
        if watching is None:
            return False
        if self._has_live(driver, node):
            self._missing.pop((driver, node), None)
            return False
        since = max(self._missing.setdefault((driver, node), self._clock()), watching)
        return self._clock() - since >= NODE_GONE

    def _noticed(self, kind: str, parts: tuple[str, ...]) -> None:
        """A lease changed: who renews it is there, whether or not anybody asks for it meanwhile."""
        found = self._view.instance(parts[0]) if kind == "instance" and self._missing else None
        if found is not None and not (found.record.ended or found.record.gone):
            for node in found.record.nodes:
                self._missing.pop((found.record.driver, node), None)

    def _has_live(self, driver: str, node: str) -> bool:
        return any(
            found.record.driver == driver and node in found.record.nodes and not self._liveness.is_dead(found.record.id)
            for found in self._view.instances()
        )
