"""A volume: a directory of the machine's share, so it is there before its machine and after it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

__all__ = ["QemuVolume"]


class QemuVolume:
    """See `conveyor_runtime.orchestra.base.Volume`."""

    def __init__(self, name: str, remove: Callable[[], Awaitable[None]]) -> None:
        self._name = name
        self._remove = remove

    @property
    def name(self) -> str:
        return self._name

    async def cleanup(self) -> None:
        """See the contract."""
        await self._remove()
