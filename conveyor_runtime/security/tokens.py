"""Bearer tokens: made at random, compared in constant time."""

from __future__ import annotations

import hmac
import secrets


def new_token() -> str:
    """A token nobody can guess, safe in a URL and a header."""
    return secrets.token_urlsafe(32)


def same_token(given: str, expected: str) -> bool:
    """Whether both are the same; how long that takes tells nothing about where they differ.

    An empty `expected` matches nothing: a token that was never set must not open a door.
    """
    # As bytes: compare_digest refuses text that is not ASCII, and a header may hold any.
    return bool(expected) and hmac.compare_digest(given.encode(errors="replace"), expected.encode(errors="replace"))
