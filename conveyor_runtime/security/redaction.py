"""Keeps secrets out of what people and machines read: logs, messages, errors."""

from __future__ import annotations

import re
from urllib.parse import quote

MASK = "***"

#: Shorter values are no secrets worth the name, and masking them would riddle every log with stars.
SHORTEST = 4

#: Up to the last @ before the path, as a password may hold one; or else up to the first @ behind what is no port,
#: as it may hold a bare slash, too, which makes no URL but stands in the error that says so.
_USERINFO = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s/?#\"'<>]*|[^\s/?#@:]*:(?!\d*[/?#])[^\s@\"'<>]*)@"
)
_QUERY = re.compile(
    r"(?P<name>[?&;](?:[\w.-]*(?:token|password|passwd|secret|signature|credential)|(?:api[_-]?)?key|auth|sig)=)"
    r"[^\s&;#\"'<>]+",
    re.IGNORECASE,
)


def redact_url(text: str) -> str:
    """`text` with the credentials of every URL in it masked: user and password, and tokens among the parameters."""
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\g<name>{MASK}", _USERINFO.sub(rf"\g<scheme>{MASK}@", text))


class Redactor:
    """Masks known secrets, and the credentials of URLs, in text."""

    def __init__(self) -> None:
        self._secrets: set[str] = set()
        self._any: re.Pattern[str] | None = None

    def add(self, secret: str) -> None:
        """From now on mask `secret`: as a whole, each of its lines, and as it is written in a URL.

        Values (and lines) of fewer than 4 characters are ignored.
        """
        # Logs are written line by line, so a key of several lines never appears whole.
        parts = {secret, *(line.strip() for line in secret.splitlines())}
        known = {part for part in parts if len(part.strip()) >= SHORTEST}
        self._secrets |= known | {quote(part, safe="") for part in known}
        longest_first = sorted(self._secrets, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def mask(self, text: str) -> str:
        """`text` without any secret; what overlaps or touches becomes one mask."""
        if self._any is not None and self._any.search(text):
            text = self._mask_known(text)
        return redact_url(text)

    def _mask_known(self, text: str) -> str:
        # One substitution after another would leave the tail of a secret that overlaps an earlier one.
        hidden = bytearray(len(text))
        for secret in self._secrets:
            at = text.find(secret)
            while at >= 0:
                hidden[at : at + len(secret)] = b"\1" * len(secret)
                at = text.find(secret, at + 1)
        result: list[str] = []
        for char, hide in zip(text, hidden, strict=True):
            if not hide:
                result.append(char)
            elif not result or result[-1] is not MASK:
                result.append(MASK)
        return "".join(result)
