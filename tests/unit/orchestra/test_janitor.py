"""What the janitor does with what cannot be closed; who is dead is `reconcile`'s matter."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from conveyor_runtime.orchestra import NamespaceInfo, Owner, reap

pytestmark = pytest.mark.looptime


class Place:
    """A backend with three namespaces, of which one hangs when it is closed."""

    name = "place"

    def __init__(self) -> None:
        self.closed: list[str] = []

    async def namespaces(self, installation: str) -> list[NamespaceInfo]:
        now = datetime.now(UTC)
        return [NamespaceInfo(ns, ns, now, (Owner(installation, ns, "s", 1, 0),)) for ns in ("a", "b", "c")]

    async def close_namespace(self, ns: str, *, grace: float) -> None:
        if ns == "b":
            await asyncio.Event().wait()
        self.closed.append(ns)


async def test_what_hangs_holds_up_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def dead(info: NamespaceInfo) -> bool:
        return True

    place = Place()
    with caplog.at_level(logging.WARNING):
        assert await reap(cast(Any, place), "i", dead) == ["a", "c"]
    assert place.closed == ["a", "c"] and "it takes too long" in caplog.text
