"""Which images may be removed when they take too much room: fn's cache, with its exemptions made to match."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from conveyor_runtime.errors import BackendError, Gone, TerminalError
from conveyor_runtime.orchestra.reference import parse_reference

__all__ = ["CachedImage", "ImageCache", "clean"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedImage:
    """One image of the engine: its id, the names it has, and its size in bytes."""

    id: str
    names: tuple[str, ...]
    size_bytes: int


class ImageCache:
    """Idle images in the order of their last use, and how often each busy one is used. Holds no images, only counts.

    Exempt images are not in it at all: they are compared by what they name, so that `busybox` is
    `docker.io/library/busybox:latest`. An image of which one name is exempt is exempt.
    """

    def __init__(self, capacity_bytes: int, exempt: Iterable[str] = ()) -> None:
        """Raises `TerminalError` for an exemption that names no image."""
        self._capacity = capacity_bytes
        self._exempt = {str(parse_reference(name)) for name in exempt}
        self._idle: dict[str, CachedImage] = {}  # oldest first
        self._busy: dict[str, tuple[CachedImage, int]] = {}

    @property
    def size_bytes(self) -> int:
        """Of all images in it, idle and busy."""
        return sum(image.size_bytes for image in self._idle.values()) + sum(
            image.size_bytes for image, _ in self._busy.values()
        )

    @property
    def is_full(self) -> bool:
        """Whether something should go and can: a full cache of busy images is no reason to wake anybody."""
        return bool(self._idle) and self.size_bytes > self._capacity

    def is_exempt(self, image: CachedImage) -> bool:
        """Whether it is never to be removed, by the names it has now."""
        for name in image.names:
            try:
                if str(parse_reference(name)) in self._exempt:
                    return True
            except TerminalError:
                continue  # `<none>:<none>` and the like
        return False

    def seen(self, image: CachedImage) -> None:
        """It is there, and idle as far as this process knows. One that is known already keeps its place."""
        if not self.is_exempt(image) and image.id not in self._busy and image.id not in self._idle:
            self._idle[image.id] = image

    def mark_busy(self, image: CachedImage) -> None:
        """It is used, once more than before."""
        if self.is_exempt(image):
            return
        self._idle.pop(image.id, None)
        _, uses = self._busy.get(image.id, (image, 0))
        self._busy[image.id] = (image, uses + 1)

    def mark_free(self, image: CachedImage) -> None:
        """It is used once less; with the last use gone it is the youngest of the idle. Too often is no harm."""
        known = self._busy.pop(image.id, None)
        if known is None:
            return
        if known[1] > 1:
            self._busy[image.id] = (known[0], known[1] - 1)
        else:
            self._idle[image.id] = known[0]

    def pop(self) -> CachedImage | None:
        """Take out the one that was idle longest, if the cache is full."""
        return self._idle.pop(next(iter(self._idle))) if self.is_full else None

    def put_back(self, image: CachedImage) -> None:
        """It could not be removed: it becomes the youngest, so that the next one has its turn."""
        self.seen(image)


async def clean(cache: ImageCache, remove: Callable[[CachedImage], Awaitable[None]], *, per_second: float) -> list[str]:
    """Remove images until the cache is no longer full, at most so many a second; the ids of those removed.

    `remove` raises `Gone` for one that is not there any more, or is not this cache's to remove, and `BackendError` for
    one that cannot be removed, which is then left for the next round.
    """
    removed: list[str] = []
    failed: list[CachedImage] = []
    while (image := cache.pop()) is not None:
        try:
            await remove(image)
            removed.append(image.id)
            logger.info("removed an image to make room", extra={"action": "image_removed", "image": image.id})
        except Gone:
            continue
        except BackendError as error:
            failed.append(image)
            logger.warning("cannot remove an image: %s", error, extra={"action": "image_kept", "image": image.id})
        await asyncio.sleep(1 / per_second)
    for image in failed:
        cache.put_back(image)
    return removed
