"""Remove what outlived its owner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from conveyor_runtime.errors import BackendError
from conveyor_runtime.orchestra.base import Backend
from conveyor_runtime.orchestra.capabilities import KeepsWarm
from conveyor_runtime.orchestra.status import NamespaceInfo

__all__ = ["IsDead", "reap"]

logger = logging.getLogger(__name__)

#: Seconds after the grace that closing one namespace may take: others must not wait for what hangs.
_LONGEST = 60.0

IsDead = Callable[[NamespaceInfo], Awaitable[bool]]
"""True only on a positive answer that the owner has ended (plus grace) or was never heard of. Not knowing is an
exception, never True."""


async def reap(backend: Backend, installation: str, is_dead: IsDead, *, grace: float = 10.0) -> list[str]:
    """Close every namespace of `installation` on `backend` whose owner is dead; returns the names of those closed.

    A namespace is left alone when `is_dead` says no or raises. One that cannot be closed is logged and met again in
    the next round. What runs in one gets `grace` seconds to end. Sandboxes that a dead process kept ready go as well.
    Raises `BackendError` only if nothing can be listed.
    """
    reaped = []
    if isinstance(backend, KeepsWarm):
        for name in await backend.reap_warm(installation):
            logger.info(
                "removed a sandbox that a dead process kept ready", extra={"action": "reaped", "container": name}
            )
    for info in await backend.namespaces(installation):
        try:
            dead = await is_dead(info)
        except Exception as error:  # noqa: BLE001 - whatever it was, it is not a positive answer
            logger.warning(
                "cannot tell whether an owner lives, leaving its namespace alone: %s",
                error,
                extra={"action": "reap_unknown", "namespace": info.ns},
            )
            continue
        if not dead:
            continue
        try:
            async with asyncio.timeout(grace + _LONGEST):
                await backend.close_namespace(info.ns, grace=grace)
        except (BackendError, TimeoutError) as error:
            logger.warning(
                "cannot close a dead namespace, will try again: %s",
                str(error) or "it takes too long",
                extra={"action": "reap_failed", "namespace": info.ns},
            )
            continue
        logger.info("closed a dead namespace", extra={"action": "reaped", "namespace": info.ns})
        reaped.append(info.ns)
    return reaped
