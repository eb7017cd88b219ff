"""Names of images, taken apart: `[registry/]repository[:tag][@digest]`.

The rows of fn's parser are kept, its errors mended: a port is not a tag, also before a digest, and what the grammar of
image references does not allow is refused. There is no kept library to take this from; the docker client's helpers
neither check nor normalise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from conveyor_runtime.errors import TerminalError

__all__ = ["Reference", "parse_reference"]

_HUB = "docker.io"
_HUB_NAMES = ("", _HUB, "index.docker.io", "registry-1.docker.io")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
_LONGEST = 255


@dataclass(frozen=True)
class Reference:
    """One image. `registry` is empty where none was given; `tag` is `latest` where there is neither tag nor digest."""

    registry: str
    repository: str
    tag: str
    digest: str

    @property
    def version(self) -> str:
        """What settles which one it is: the digest if there is one, else the tag."""
        return self.digest or self.tag

    @property
    def host(self) -> str:
        """The registry that is asked, with the public one by its name: to compare credentials with."""
        return _HUB if self.registry in _HUB_NAMES else self.registry

    def __str__(self) -> str:
        """Normalised: the same text for every way to write the same image."""
        tag = f":{self.tag}" if self.tag and not self.digest else ""
        return f"{self.host}/{self.repository}{tag}{f'@{self.digest}' if self.digest else ''}"


def parse_reference(image: str) -> Reference:
    """Take a name apart. Raises `TerminalError` for one that is none."""
    rest, at, digest = image.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _refusal(image, f"{digest!r} is no digest")
    first, slash, below = rest.partition("/")
    registry = first if slash and ("." in first or ":" in first or first == "localhost") else ""
    repository, colon, tag = (below if registry else rest).partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _refusal(image, f"{tag!r} is no tag")
    if registry and not _REGISTRY.fullmatch(registry):
        raise _refusal(image, f"{registry!r} is no registry")
    if not _REPOSITORY.fullmatch(repository) or len(registry) + len(repository) > _LONGEST:
        raise _refusal(image, f"{repository!r} is no repository")
    if registry in _HUB_NAMES and "/" not in repository:
        repository = f"library/{repository}"
    return Reference(registry, repository, tag or ("" if digest else "latest"), digest)


def _refusal(image: str, why: str) -> TerminalError:
    return TerminalError(f"{image!r} does not name an image: {why}")
