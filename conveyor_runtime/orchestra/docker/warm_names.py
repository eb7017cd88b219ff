"""Whose a sandbox is that was started before it had an owner.

Labels are for good, names are not: such a container says by its name where it belongs. While it is kept ready it bears
one of ours; taking it over is renaming it, which the engine does for one of many who try. What its labels would have
said of its owner, the labels of an empty volume say that is made right before.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from conveyor_runtime.kit import identity
from conveyor_runtime.kit.identity import ProcessIdentity
from conveyor_runtime.orchestra.docker import spec
from conveyor_runtime.orchestra.names import run_of
from conveyor_runtime.orchestra.task import Owner

__all__ = ["KEEPER", "is_kept", "is_left", "kept_labels", "namespace_of", "new_name", "taken_mark", "taken_owners"]

KEEPER = f"{spec.LABEL}keeper"
_TTL = f"{spec.LABEL}ttl"
_READY = "conveyor-warm"  # in the place of a namespace; those begin with `cv-`
_LATE = timedelta(seconds=60)


def new_name() -> str:
    """A name for one that is kept ready."""
    return f"{_READY}.{secrets.token_hex(8)}"


def is_kept(name: str) -> bool:
    """Whether a container of that name has no owner yet."""
    return name.startswith(f"{_READY}.")


def taken_mark(name: str) -> str:
    """The volume whose labels say who took over the container of that name."""
    return f"{name}.taken"


def namespace_of(name: str, found: Mapping[str, str]) -> str:
    """The namespace of a container with these labels; "" if it has none."""
    return name.partition(".")[0] if KEEPER in found and not is_kept(name) else found.get(f"{spec.LABEL}namespace", "")


def kept_labels(installation: str, ttl: float) -> dict[str, str]:
    """What is known from the beginning: who keeps it, and for how many seconds at most."""
    own = ProcessIdentity.own()
    return {
        f"{spec.LABEL}installation": installation,
        KEEPER: f"{own.boot_id} {own.pid_namespace} {own.pid} {own.start_time}",
        _TTL: str(ttl),
        spec.KIND: "sandbox",
    }


def is_left(found: Mapping[str, str], created_at: datetime) -> bool:
    """Whether nobody keeps it any more: its process is seen to be gone, or it is older than any process lets one get,
    which is how it is known of a process that cannot be seen from here."""
    boot, namespace, pid, started = found[KEEPER].split(" ")
    is_visible = boot and namespace and (boot, namespace) == (identity.boot_id(), identity.pid_namespace())
    if is_visible and identity.start_time(int(pid)) != int(started):
        return True
    return datetime.now(UTC) - created_at > timedelta(seconds=float(found[_TTL])) + _LATE


def taken_owners(
    installation: str, containers: Iterable[Mapping[str, Any]], volumes: Iterable[Mapping[str, Any]]
) -> list[tuple[str, Owner, datetime]]:
    """Namespace, owner and creation of each listed container that was taken over. If somebody has removed its mark, its
    name tells the run at least."""
    marks = {volume["Name"]: volume["Labels"] for volume in volumes}
    found = []
    for container in containers:
        name = container["Names"][0].lstrip("/")
        if KEEPER in container["Labels"] and not is_kept(name):
            ns, mark = namespace_of(name, container["Labels"]), marks.get(taken_mark(name))
            owner = spec.owner_of(mark) if mark else Owner(installation, run_of(installation, ns) or "", "", 0, 0)
            found.append((ns, owner, datetime.fromtimestamp(container["Created"], UTC)))
    return found
