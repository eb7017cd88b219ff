"""Makes a driver known: its consumers first, then its record, so that nothing is sent where nobody keeps it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from conveyor_runtime.bus import Bus, subjects
from conveyor_runtime.bus.consumers import ensure_consumer, list_consumers
from conveyor_runtime.bus.streams import MESSAGES
from conveyor_runtime.errors import ConfigError, RevisionConflict
from conveyor_runtime.reconcile.driver import Driver
from conveyor_runtime.reconcile.namesakes import find_living
from conveyor_runtime.store import Put, State, keys

#: Dispatches of a driver without `max_concurrent` that are out with its processes at once: those they work on, and
#: those that wait for room on a node. The same for all of them, whoever makes the consumer last.
_MOST_OUT = 50_000


class Registration:
    """Registers `driver` for this process, on `nodes` if it works in sandboxes."""

    def __init__(self, driver: Driver, bus: Bus, state: State, nodes: tuple[str, ...]) -> None:
        self._driver = driver
        self._bus = bus
        self._state = state
        self._nodes = nodes if driver.sandbox else ()

    def consumers(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """The consumers this process pulls from, each with how to make it (again)."""
        name, types = self._driver.name, self._driver.resources
        anywhere = [subjects.step_dispatch(name, type_) for type_ in types]
        if self._driver.direct:
            anywhere += [subjects.direct_event(type_) for type_ in types]
        filters = {subjects.driver_consumer(name): anywhere}
        for node in self._nodes:
            filters[subjects.node_consumer(name, node)] = [subjects.node_dispatch(name, node, type_) for type_ in types]

        # What the server hands out and has no ack of yet is what the fleet works on: a limit that no crash can break.
        at_once = self._driver.max_concurrent or _MOST_OUT

        def maker(consumer: str, wanted: list[str]) -> Callable[[], Awaitable[None]]:
            async def make() -> None:
                await ensure_consumer(self._bus, MESSAGES, consumer, filters=wanted, max_ack_pending=at_once)

            return make

        return {consumer: maker(consumer, wanted) for consumer, wanted in filters.items()}

    async def register(self) -> None:
        """Make consumers and record. Raises ConfigError if the name belongs to somebody else who lives."""
        await self._refuse_foreign_namesake()
        while True:
            known = await self._state.driver(self._driver.name)
            if known is not None and not known.record.foreign:
                if set(known.record.types) != set(self._driver.resources):
                    await self._refuse_living_namesake(known.record.types)
                nodes = tuple(sorted({*known.record.nodes, *self._nodes}))
            else:
                nodes = self._nodes
            for make in self.consumers().values():
                await make()
            record = self._driver.record(nodes)
            if known is not None and known.record == record:
                return
            try:
                await self._state.commit(Put(keys.driver(record.name), record, known.revision if known else 0))
            except RevisionConflict:
                continue
            return

    async def _refuse_foreign_namesake(self) -> None:
        for info in await list_consumers(self._bus, MESSAGES):
            if info["name"] == self._driver.name:
                raise ConfigError(
                    f"a driver named {self._driver.name} built on another SDK has a consumer on this bus: both would be"
                    " handed every event. Stop it and remove its consumer, or give this one another name"
                )

    async def _refuse_living_namesake(self, types: tuple[str, ...]) -> None:
        instance = await find_living(self._driver.name, self._state, self._bus)
        if instance is not None:
            raise ConfigError(
                f"a driver named {self._driver.name} for {', '.join(types)} is running on {instance.host}"
                f" (pid {instance.pid}); this one is for {', '.join(self._driver.resources)}."
                " Stop the other, or give this one another name"
            )
