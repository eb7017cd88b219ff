"""Which repositories and refs may be given to git, and what must not be shown of them. Pure.

Git takes more than addresses: options, commands behind `ext::`, files of the worker's machine. What is not plainly an
address of an allowed kind is refused, and git itself is told once more which protocols it may use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from conveyor_runtime.errors import TerminalError

__all__ = ["PROTOCOLS", "Repository", "check_ref", "is_commit", "parse_repository"]

PROTOCOLS = ("https", "http", "ssh", "git")

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HELPER = re.compile(r"[A-Za-z0-9+.-]*::")
_SCP = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.+-]*@)?(?:[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\]):(?![-:])\S+")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]*")
_BAD_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Repository:
    """An address that may be cloned. `url` holds no password; `user` and `password` are what it held."""

    url: str
    user: str = ""
    password: str = ""
    origin: str = ""
    """`scheme://host[:port]`, for which the credentials are; empty where there are none."""

    @property
    def shown(self) -> str:
        """The address for people: with a mask where the credentials were."""
        return self.url.replace("://", "://***@", 1) if self.origin else self.url

    @property
    def secrets(self) -> list[str]:
        """What no log may show. A lone user name is a token."""
        return [secret for secret in (self.password or self.user, unquote(self.password or self.user)) if secret]


def parse_repository(text: str, *, allow_files: bool) -> Repository:
    """The address in `text`, or `TerminalError` saying what is wrong with it.

    Allowed are https, http, ssh and git URLs and `[user@]host:path`; with `allow_files` also `file://` URLs and
    absolute paths.
    """
    if not text or text != text.strip() or _CONTROL.search(text) or _CONTROL.search(unquote(text)):
        raise TerminalError("the repository's address is empty, or holds spaces at its ends or control characters")
    if text.startswith("-"):
        raise TerminalError(f"the repository {text!r} looks like an option")
    scheme = _SCHEME.match(text)
    if scheme is None and _HELPER.match(text):
        raise TerminalError("repositories behind remote helpers (name::address) are not allowed")
    if scheme is not None:
        kind = scheme[1].lower()
        if kind == "file":
            return _file(text[len("file://") :], text, allow_files=allow_files)
        if kind not in PROTOCOLS:
            raise TerminalError(f"repositories by {kind}:// are not allowed; use {', '.join(PROTOCOLS)}")
        return _url(kind, text)
    if text.startswith("/"):
        return _file(text, text, allow_files=allow_files)
    if _SCP.fullmatch(text) and "/" not in text.split(":", 1)[0]:
        return Repository(text)
    raise TerminalError("the repository is no address: give a URL, or user@host:path")


def check_ref(ref: str) -> str:
    """The branch, tag or commit itself, or `TerminalError` if git could take it for something else."""
    if not ref or len(ref) > 255 or ref[0] in "-/." or ref[-1] in "/." or ref == "@" or _BAD_REF.search(ref):
        raise TerminalError(f"{ref!r} is no branch, tag or commit")
    return ref


def is_commit(ref: str) -> bool:
    """Whether it is a whole commit id."""
    return _COMMIT.fullmatch(ref) is not None


def _file(path: str, text: str, *, allow_files: bool) -> Repository:
    if not allow_files:
        raise TerminalError(
            "repositories in files of the worker's machine are not allowed here; start git-cloner (or `up`) with"
            " --allow-file-repositories or CONVEYOR_ALLOW_FILE_REPOSITORIES=true to allow them"
        )
    if path.startswith("localhost/"):
        path = path[len("localhost") :]
    if not path.startswith("/"):
        raise TerminalError(f"the repository {text!r} must be an absolute path")
    # As a URL also where a path was given: git then speaks its protocol, which is what makes a shallow clone shallow.
    return Repository(f"file://{path}")


def _url(kind: str, text: str) -> Repository:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port  # a bad port is found by asking for it
    except ValueError as error:
        raise TerminalError(f"the repository's address is no URL: {error}") from error
    if " " in text or "\\" in text or not _HOST.fullmatch(host):
        raise TerminalError("the repository's address has no valid host")
    userinfo, _, address = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    if kind == "ssh":
        if password:
            raise TerminalError("an ssh address cannot hold a password; give the worker a key")
        if user and not _USER.fullmatch(user):
            raise TerminalError("the repository's address has no valid user")
        return Repository(text)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    if not userinfo:
        return Repository(text)
    return Repository(f"{kind}://{address}{path}", user=user, password=password, origin=f"{kind}://{address}")
