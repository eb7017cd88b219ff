"""What the engine says of a container, read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from conveyor_runtime.orchestra.task import Port

__all__ = ["has_ended", "is_unstarted", "moment", "ports"]


def is_unstarted(attributes: Mapping[str, Any]) -> bool:
    """Whether it was made, and nobody has tried to start it yet."""
    state = attributes["State"]
    return state["Status"] == "created" and not state.get("Error")


def has_ended(attributes: Mapping[str, Any]) -> bool:
    """Whether it ran, or could not be started, and will not be started again."""
    state = attributes["State"]
    return not is_unstarted(attributes) and not (state["Running"] or state.get("Paused") or state.get("Restarting"))


def ports(attributes: Mapping[str, Any]) -> tuple[Port, ...]:
    """What is published now."""
    bound = []
    for name, bindings in ((attributes.get("NetworkSettings") or {}).get("Ports") or {}).items():
        number, _, protocol = name.partition("/")
        bound += [
            Port(int(number), int(binding["HostPort"]), "udp" if protocol == "udp" else "tcp", binding["HostIp"])
            for binding in bindings or ()
        ]
    return tuple(bound)


def moment(text: str) -> datetime:
    """A time as the engine writes it."""
    return datetime.fromisoformat(text[:26].rstrip("Z") + "+00:00" if text.endswith("Z") else text).astimezone(UTC)
