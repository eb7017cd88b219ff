"""What a driver is: a name, the types it serves and its reconcile function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, get_type_hints

from conveyor_runtime.errors import ConfigError
from conveyor_runtime.models import NAME_RULE, DriverRecord, Resource, is_name
from conveyor_runtime.orchestra import Limits
from conveyor_runtime.reconcile.context import RunContext
from conveyor_runtime.reconcile.rate import RateLimit

EVENTS = ("create", "update", "delete", "resync")

Reconcile = Callable[..., Any]


@dataclass(frozen=True)
class Driver:
    """A named reconcile unit.

    `reconcile(payload, event, run_id, logger)` is sync or async and returns a `DriverResult` (or None for success).
    `payload` is injected by its annotation: `str` = the raw JSON, `Resource` or `Resource[MySpec]` = decoded and
    validated. A fifth parameter named `context` receives the `RunContext`.

    `events` is any of create, update, delete, resync, or `"*"` for all. `direct` drivers are also handed resources
    that have no pipeline. `sandbox` says that it works in containers of a node, so that the steps of a run must meet
    there; `backend_of` then names the backend a resource asks for (None = the process's default), and `uses`, of the
    driver that begins a run's sandbox, the CPU, memory and disk the run holds of its node until it ends: a create or an
    update waits while the node has not that much left; a delete or a resync never does. `keeps_warm` has its processes
    keep sandboxes ready that it will start, where the operator's settings name some. `defaults` are spec fields used
    where a resource leaves them out, per type.

    `resync_period` (seconds) asks for a `resync` of each resource of its types that no run has ended of for that long;
    it is looked at once a minute. It goes to every direct driver of the type that takes `resync`.

    `max_concurrent` bounds how many runs all processes of the driver together work on at once. One whose process was
    killed counts for up to half a minute more. Not for drivers with `sandbox`: what they may do at once is a matter of
    each node.

    `rate_limit` bounds how often a run begins in all its processes together: `10/s`, `30/m`, or a `RateLimit` with a
    burst. What must wait for it holds no slot. Meant for what is scarce: a process looks for one run after another, so
    that hundreds a second are more than it begins.

    Raises ConfigError, saying what is wrong, if it could never work.
    """

    name: str
    resources: tuple[str, ...]
    reconcile: Reconcile
    events: tuple[str, ...] | Literal["*"] = ("create", "update")
    sandbox: bool = False
    direct: bool = True
    backend_of: Callable[[Resource[Any]], str | None] = lambda resource: None
    uses: Callable[[Any], Limits] | None = None
    keeps_warm: bool = False
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    resync_period: float | None = None
    max_concurrent: int | None = None
    rate_limit: str | RateLimit | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "resources", tuple(self.resources))
        object.__setattr__(self, "events", ("*",) if "*" in self.events else tuple(self.events))
        if not is_name(self.name):
            raise ConfigError(f"driver name {self.name!r}: must be {NAME_RULE}")
        if not self.resources:
            raise ConfigError(f"driver {self.name}: name at least one resource type")
        for type_ in self.resources:
            if not is_name(type_):
                raise ConfigError(f"driver {self.name}: resource type {type_!r} must be {NAME_RULE}")
        unknown = sorted(set(self.events) - {*EVENTS, "*"})
        if unknown or not self.events:
            raise ConfigError(f"driver {self.name}: events must be among {', '.join(EVENTS)} or *, not {unknown}")
        if self.resync_period is not None and not (
            self.resync_period > 0 and self.direct and self.record().takes(self.resources[0], "resync")
        ):
            raise ConfigError(
                f"driver {self.name}: resync_period must be above 0, and is only for direct drivers that take resync"
            )
        if self.max_concurrent is not None and (self.max_concurrent < 1 or self.sandbox):
            raise ConfigError(
                f"driver {self.name}: max_concurrent must be at least 1, and is not for drivers with sandbox"
            )
        if self.rate_limit is not None:
            object.__setattr__(self, "rate_limit", RateLimit.of(self.rate_limit))
        if not callable(self.reconcile):
            raise ConfigError(f"driver {self.name}: reconcile must be a function")
        if len(self._parameters) < 4:
            raise ConfigError(f"driver {self.name}: reconcile must take (payload, event, run_id, logger)")

    @cached_property
    def _parameters(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self.reconcile).parameters.values())

    @cached_property
    def is_async(self) -> bool:
        """Whether reconcile is a coroutine function; a sync one runs in a thread."""
        called = getattr(self.reconcile, "__call__", None)  # noqa: B004 - an object may be called, too
        return any(map(inspect.iscoroutinefunction, (self.reconcile, inspect.unwrap(self.reconcile), called)))

    @cached_property
    def takes_context(self) -> bool:
        """Whether reconcile has a parameter named `context`."""
        return any(parameter.name == "context" for parameter in self._parameters)

    @cached_property
    def payload_type(self) -> type[str] | type[Resource[Any]]:
        """`str`, or the `Resource` type the payload is decoded to. Raises ConfigError."""
        annotated = self.reconcile
        while isinstance(annotated, partial):
            annotated = annotated.func
        if not inspect.isroutine(annotated):
            annotated = getattr(annotated, "__call__")  # noqa: B004, B009 - the function behind an object
        try:
            hint = get_type_hints(annotated).get(self._parameters[0].name, str)
        except NameError as error:
            raise ConfigError(
                f"driver {self.name}: the annotations of reconcile cannot be read: {error}; they must name what its"
                " module knows"
            ) from None
        if hint is str:
            return str
        if isinstance(hint, type) and issubclass(hint, Resource):
            return hint
        raise ConfigError(
            f"driver {self.name}: payload must be annotated str, Resource or Resource[YourSpec], not {hint}"
        )

    @cached_property
    def takes(self) -> Callable[[str, str], bool]:
        """Whether it asked for an event of resources of a type."""
        return self.record().takes

    def record(self, nodes: tuple[str, ...] = ()) -> DriverRecord:
        """What is registered in the state for everybody to see."""
        return DriverRecord(
            name=self.name,
            types=self.resources,
            events=tuple(self.events),
            sandbox=self.sandbox,
            direct=self.direct,
            nodes=nodes,
            resync_period=self.resync_period,
            max_concurrent=self.max_concurrent,
            rate_limit=str(self.rate_limit or ""),
            uses=self.uses is not None,
        )


def driver(
    name: str,
    *resources: str,
    events: tuple[str, ...] | Literal["*"] = ("create", "update"),
    direct: bool = True,
    resync_period: float | None = None,
    max_concurrent: int | None = None,
    rate_limit: str | RateLimit | None = None,
) -> Callable[[Reconcile], Driver]:
    """Decorator form: `@driver("my-driver", "my-type")` above a reconcile function makes it a `Driver`."""

    def wrap(reconcile: Reconcile) -> Driver:
        return Driver(
            name,
            resources,
            reconcile,
            events,
            direct=direct,
            resync_period=resync_period,
            max_concurrent=max_concurrent,
            rate_limit=rate_limit,
        )

    return wrap


__all__ = ["EVENTS", "Driver", "Reconcile", "RunContext", "driver"]
