"""The keys of the state bucket. Every part is a name or an id, so no part holds a dot."""

from __future__ import annotations

META = "meta.epoch"


def resource(type_: str, name: str) -> str:
    """Desired state of one resource and the runs it owes."""
    return f"resource.{type_}.{name}"


def version(resource_id: str, revision: int) -> str:
    """An earlier revision of a resource; named by the resource's id, so that a namesake never inherits it."""
    return f"version.{resource_id}.{revision}"


def run(run_id: str) -> str:
    """Plan, progress and outbox of one run."""
    return f"run.{run_id}"


def run_input(run_id: str) -> str:
    """The resource a run pinned, where it is too large for the run record."""
    return f"input.{run_id}"


def run_data(run_id: str, step: str, attempt: int, takeover: int = 0) -> str:
    """A result's data, where it is too large for the run record. Each takeover has its own: a late result of an
    earlier one must not write over the one that counts."""
    return f"data.{run_id}.{step}.{attempt}.{takeover}"


def claim(run_id: str, step: str, attempt: int, takeover: int) -> str:
    """Who works on one attempt."""
    return f"claim.{run_id}.{step}.{attempt}.{takeover}"


def instance(instance_id: str) -> str:
    """The lease of one driver process."""
    return f"instance.{instance_id}"


def driver(name: str) -> str:
    """What a driver serves."""
    return f"driver.{name}"


def node(node_id: str) -> str:
    """What the runs on a node hold of it."""
    return f"node.{node_id}"


def rate(driver: str) -> str:
    """The token bucket of a driver."""
    return f"rate.{driver}"


def overtakers(driver: str) -> str:
    """The dispatches of a driver that come before others."""
    return f"overtakers.{driver}"


def definition(type_: str) -> str:
    """A resource definition."""
    return f"definition.{type_}"
