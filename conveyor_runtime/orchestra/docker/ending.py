"""What the end of a container counts as: decided once, whoever asks first and from whichever process.

The engine knows an exit code and a time. What else there is to know (that it was stopped on purpose, that its input was
cut off) must be somewhere before the end is, and outlive whoever knew it. A container's own labels are for good, so the
labels of an empty volume say it: making a volume that is there already gives the one that is there, which is how the
first of many decides. It bears the container's id, because the next container of that name has an end of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import cast

from conveyor_runtime.errors import Gone
from conveyor_runtime.orchestra.docker import spec
from conveyor_runtime.orchestra.docker.client import Engine
from conveyor_runtime.orchestra.status import Reason, Status

__all__ = ["Ending"]

_ENDING = f"{spec.LABEL}ending"
_LATE = timedelta(seconds=5)  # for a feeder to see that its container has ended, and to note that


class Ending:
    """The one of the container `name` with that id and these labels."""

    def __init__(self, engine: Engine, name: str, container: str, found: Mapping[str, str]) -> None:
        self._engine = engine
        self._id = container
        self._decision = f"{name}.ending-{container[:12]}"
        self._fed = f"{name}.fed-{container[:12]}"
        self._is_fed = bool(found.get(spec.STDIN))
        self._labels = spec.ownership(found)

    async def decide(self, status: Status, reason: Reason | None) -> tuple[Status, Reason | None]:
        """What it counts as: this, unless it was decided before. Raises `Gone` if the container is."""
        noted = await self._note(self._decision, {_ENDING: f"{status} {reason or ''}"})
        status_word, _, reason_word = noted[_ENDING].partition(" ")
        return cast(Status, status_word), cast(Reason | None, reason_word or None)

    async def note_fed(self) -> None:
        """All its input is on its way to it, or it wants no more. To be noted before the input's end is sent: from then
        on the container may end, and without this note its end is an error."""
        await self._note(self._fed, {})

    async def of(self, status: Status, reason: Reason | None, at: datetime) -> tuple[Status, Reason | None] | None:
        """What it counts as that it ended so, `at` that time; None if that cannot be told yet.

        A container whose feeder was killed reads the end of its input as if all had come.
        """
        if self._is_fed and not await self._is_there(self._fed) and not await self._is_there(self._decision):
            if datetime.now(UTC) - at < _LATE:
                return None
            status, reason = "error", "input"
        return await self.decide(status, reason)

    async def forget(self) -> None:
        """Remove what was noted, when the container is gone."""
        for volume in (self._decision, *([self._fed] if self._is_fed else ())):
            with contextlib.suppress(Gone):
                await self._engine.call(self._engine.api.remove_volume, volume)

    async def _note(self, volume: str, labels: dict[str, str]) -> dict[str, str]:
        noted = await self._engine.call(self._engine.api.create_volume, volume, labels={**self._labels, **labels})
        try:
            # Whoever removes the container looks for volumes afterwards: while it is there, this one will be found.
            await self._engine.call(self._engine.api.inspect_container, self._id)
        except Gone:
            await self.forget()
            raise
        return dict(noted["Labels"])

    async def _is_there(self, volume: str) -> bool:
        try:
            await self._engine.call(self._engine.api.inspect_volume, volume)
        except Gone:
            return False
        return True
