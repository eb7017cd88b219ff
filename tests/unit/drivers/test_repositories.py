"""Addresses and refs: what is taken, what is refused, what is shown."""

from __future__ import annotations

import pytest

from conveyor_runtime.errors import TerminalError
from drivers.repositories import check_ref, parse_repository

GOOD = [
    "https://github.com/a/b.git",
    "https://github.com:8443/a/b",
    "http://127.0.0.1:3000/r",
    "https://[::1]:3000/r",
    "git://example.org/a",
    "ssh://git@example.org:22/a/b.git",
    "ssh://example.org/~user/r",
    "git@github.com:a/b.git",
    "example.org:repo",
    "user.name+x@example.org:~/repo",
    "HTTPS://Example.org/r",
]

BAD = [
    "",
    " https://example.org/r",
    "--upload-pack=x",
    "-u",
    "ext::sh -c id",
    "ext::sh",
    "::x",
    "fd::17",
    "transport::address",
    "file:///etc",
    "FILE:///etc",
    "/etc",
    "relative/path",
    "./x",
    "../x",
    "~/x",
    "repo",
    "ftp://example.org/r",
    "ftps://example.org/r",
    "rsync://example.org/r",
    "javascript://example.org/",
    "https://",
    "https:///path",
    "https://-host/r",
    "ssh://-oProxyCommand=id/r",
    "ssh://-oProxyCommand=id@example.org/r",
    "ssh://git@-oProxyCommand=id/r",
    "ssh://user:password@example.org/r",
    "-oProxyCommand=id@example.org:r",
    "-host:path",
    "host:-path",
    "user@-host:path",
    "git@host:a b",
    "https://example.org/a\nb",
    "https://example.org/a\x00b",
    "https://example.org/a\tb",
    "git://example.org/%0aevil",
    "git://example.org/%00",
    "https://exa mple.org/r",
    "https://example.org:port/r",
    "https://example.org:99999/r",
    "https://exam$(id).org/r",
    "https://a\\b.org/r",
    "ext::https://example.org/r",
]


@pytest.mark.parametrize("text", GOOD)
def test_addresses_that_are_taken(text: str) -> None:
    assert parse_repository(text, allow_files=False).url == text


@pytest.mark.parametrize("text", BAD)
def test_addresses_that_are_refused(text: str) -> None:
    with pytest.raises(TerminalError):
        parse_repository(text, allow_files=False)


@pytest.mark.parametrize("text", [text for text in BAD if not text.lower().startswith(("file://", "/"))])
def test_allowing_files_allows_nothing_else(text: str) -> None:
    with pytest.raises(TerminalError):
        parse_repository(text, allow_files=True)


def test_files_where_they_are_allowed() -> None:
    for text in ("/srv/r.git", "file:///srv/r.git", "file://localhost/srv/r.git"):
        assert parse_repository(text, allow_files=True).url == "file:///srv/r.git"
    for text in ("file://host/srv", "file://", "srv"):
        with pytest.raises(TerminalError):
            parse_repository(text, allow_files=True)


def test_credentials_are_taken_apart() -> None:
    found = parse_repository("https://me:p%40ss@example.org:8443/a/b.git", allow_files=False)
    assert found.url == "https://example.org:8443/a/b.git"
    assert (found.user, found.password, found.origin) == ("me", "p%40ss", "https://example.org:8443")
    assert found.shown == "https://***@example.org:8443/a/b.git"
    assert found.secrets == ["p%40ss", "p@ss"]


def test_a_lone_user_is_a_token() -> None:
    found = parse_repository("https://ghp_token@example.org/r", allow_files=False)
    assert found.secrets[0] == "ghp_token"
    assert "ghp_token" not in found.shown
    assert "ghp_token" not in found.url


def test_an_error_does_not_show_credentials() -> None:
    with pytest.raises(TerminalError) as error:
        parse_repository("https://me:secret@bad host/r", allow_files=False)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("ref", ["main", "feature/x-1", "v1.2.3", "refs/heads/main", "a" * 40, "0123abc", "ü", "HEAD"])
def test_refs_that_are_taken(ref: str) -> None:
    assert check_ref(ref) == ref


@pytest.mark.parametrize(
    "ref",
    [
        *["", "-x", "--upload-pack=x", "a..b", "a b", "a\nb", "a\x00b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b"],
        *["@{u}", "a@{1}", "@", ".a", "a.", "/a", "a/", "a//b", "a/.b", "a.lock", "a.lock/b", "a" * 256],
    ],
)
def test_refs_that_are_refused(ref: str) -> None:
    with pytest.raises(TerminalError):
        check_ref(ref)


def test_the_refusal_of_a_file_says_how_to_allow_it() -> None:
    with pytest.raises(TerminalError, match="--allow-file-repositories or CONVEYOR_ALLOW_FILE_REPOSITORIES"):
        parse_repository("file:///srv/r.git", allow_files=False)
