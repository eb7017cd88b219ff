"""Which steps a run has: of its pipeline, of the drivers that take its type, or of those that clean up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from conveyor_runtime.models import DriverRecord, PipelineSpec, PlannedStep


@dataclass(frozen=True)
class Fleet:
    """What is registered: which drivers there are, and where. `away` are foreign drivers without a consumer now."""

    drivers: Mapping[str, DriverRecord] = field(default_factory=dict)
    away: frozenset[str] = frozenset()

    def knows(self, driver: str) -> bool:
        """Whether the driver has ever registered."""
        return driver in self.drivers or driver in self.away

    def can_deliver(self, driver: str, node: str | None) -> bool:
        """Whether a dispatch would find a consumer that keeps it."""
        record = self.drivers.get(driver)
        return record is not None and (node is None or node in record.nodes)

    def is_sandbox(self, driver: str) -> bool:
        """Whether the driver works in containers of a node."""
        record = self.drivers.get(driver)
        return record is not None and record.sandbox


def plan_pipeline(spec: PipelineSpec) -> tuple[PlannedStep, ...]:
    """The steps of a pipeline, each needing the one before it; `finally` steps come after all others."""
    plan: list[PlannedStep] = []
    for steps, is_finally in ((spec.steps, False), (spec.finally_, True)):
        before: tuple[str, ...] = ()
        for step in steps:
            plan.append(
                PlannedStep(
                    id=step.id,
                    name=step.name,
                    driver=step.driver,
                    needs=before,
                    finally_=is_finally,
                    timeout=step.timeout,
                    queue_timeout=step.queue_timeout,
                )
            )
            before = (step.id,)
    return tuple(plan)


def plan_direct(type_: str, event: str, fleet: Fleet) -> tuple[PlannedStep, ...]:
    """One parallel step per driver that takes this event of resources without a pipeline."""
    takers = sorted(name for name, record in fleet.drivers.items() if record.direct and record.takes(type_, event))
    return tuple(PlannedStep(id=name, name=name, driver=name) for name in takers)


def plan_delete(type_: str, pipeline: tuple[PlannedStep, ...], fleet: Fleet) -> tuple[PlannedStep, ...]:
    """The drivers that asked for `delete`, one after another: the pipeline's, last step first, then direct ones."""
    takers: list[str] = []
    direct = [step.driver for step in plan_direct(type_, "delete", fleet)]
    for driver in [*(step.driver for step in reversed(pipeline)), *direct]:
        record = fleet.drivers.get(driver)
        if record and record.takes(type_, "delete") and driver not in takers:
            takers.append(driver)
    needs = [(), *((driver,) for driver in takers)]
    return tuple(
        PlannedStep(id=driver, name=driver, driver=driver, needs=before)
        for driver, before in zip(takers, needs, strict=False)
    )
