"""One pull of an image, and what the engine says meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from docker.errors import DockerException
from requests import RequestException

from conveyor_runtime.errors import BackendUnavailable, ImageNotFound, TerminalError
from conveyor_runtime.orchestra.base import Progress
from conveyor_runtime.orchestra.docker.client import Engine, translate
from conveyor_runtime.orchestra.docker.reading import ThreadedReader
from conveyor_runtime.orchestra.reference import parse_reference

__all__ = ["PullReport", "digest_of", "pull", "pull_error"]

_NOT_THERE = (
    "manifest unknown",
    "not found",
    "pull access denied",
    "unauthorized",
    "no basic auth credentials",
    "authentication required",
    "no matching manifest",
    "denied:",
    "does not exist",
)
_EVERY = 5.0  # seconds between two lines about the same download


def digest_of(image: Mapping[str, Any], name: str) -> str:
    """What names the content of an inspected image that was asked for by `name`: its digest in the repository of that
    name, or its id here if it has none there. Another repository's digest could not be pulled from there."""
    asked = parse_reference(name)
    if asked.digest:
        return asked.digest
    for known in image.get("RepoDigests") or ():
        with suppress(TerminalError):  # `<none>@<none>`
            found = parse_reference(str(known))
            if (found.host, found.repository) == (asked.host, asked.repository):
                return found.digest
    return str(image["Id"])


async def pull(engine: Engine, image: str, credentials: Mapping[str, str] | None, on_progress: Progress) -> None:
    """Fetch the image once. `credentials` (username, password) are for its registry; None = as the docker command
    would. Raises `ImageNotFound` or `BackendUnavailable`."""
    await on_progress(f"pulling {image}")
    items: Iterator[dict[str, Any]] | None = None

    def read() -> dict[str, Any] | None:
        nonlocal items
        try:
            if items is None:
                engine.api.reload_config()  # somebody may have logged in meanwhile
                items = engine.api.pull(image, stream=True, decode=True, auth_config=credentials)
            return next(items, None)
        except (DockerException, RequestException, OSError) as error:
            raise _refine(image, error) from error

    # Nothing to stop it with: when the caller is gone the thread ends with the next item, and the pull with it.
    reader = ThreadedReader(read, lambda: None)
    report = PullReport()
    try:
        while (item := await reader.next()) is not None:
            if "error" in item:
                raise pull_error(image, str(item["error"]))
            line = report.line(item, time.monotonic())
            if line:
                await on_progress(line)
    finally:
        reader.close()


def pull_error(image: str, message: str) -> ImageNotFound | BackendUnavailable:
    """What the engine's complaint means: no use trying again, or perhaps later."""
    if any(words in message.lower() for words in _NOT_THERE):
        return ImageNotFound(f"cannot pull {image}: {message}")
    without = "without a network, name an image that docker has already, or use --backend native, which needs none"
    return BackendUnavailable(f"cannot pull {image} now: {message} ({without})")


def _refine(image: str, error: Exception) -> Exception:
    found = translate(error)
    if isinstance(found, TerminalError | BackendUnavailable):
        return found
    return pull_error(image, str(found))


class PullReport:
    """Turns the engine's many progress items into a few lines for a person."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[int, int]] = {}
        self._said_at: float | None = None

    def line(self, item: dict[str, Any], now: float) -> str | None:
        """What to say at `now` (seconds, monotonic), if anything."""
        status, layer = str(item.get("status", "")), str(item.get("id", ""))
        detail = item.get("progressDetail") or {}
        if not detail.get("total"):
            return f"{layer}: {status}" if layer and status else status or None
        if status != "Downloading":
            return None
        self._layers[layer] = (int(detail.get("current", 0)), int(detail["total"]))
        if self._said_at is not None and now - self._said_at < _EVERY:
            return None
        self._said_at = now
        done, total = (sum(numbers) / 1e6 for numbers in zip(*self._layers.values(), strict=True))
        return f"downloading: {done:.0f} of {total:.0f} MB in {len(self._layers)} layers"
