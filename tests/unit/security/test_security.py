import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyor_runtime.security import MASK, Redactor, new_token, redact_url, same_token


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("nats://u:p@h:4222", "nats://***@h:4222"),
        ("https://token@host/x.git", "https://***@host/x.git"),
        ("cloning https://u:p@ss@host/x failed", "cloning https://***@host/x failed"),
        ("a://u:p@h,b://v:q@i", "a://***@h,b://***@i"),
        ("https://u:p/w?x@h/y@1", "https://***@h/y@1"),
        ("http://h:8080/@scope/x@1", "http://h:8080/@scope/x@1"),
        ("http://h/x?token=abc&y=1", "http://h/x?token=***&y=1"),
        ("http://h/x?private_token=abc", "http://h/x?private_token=***"),
        ("https://h/@scope/pkg@1.0", "https://h/@scope/pkg@1.0"),
        ("mail me@example.org", "mail me@example.org"),
        ("http://h/?keyboard=us", "http://h/?keyboard=us"),
    ],
)
def test_redact_url(text, safe):
    assert redact_url(text) == safe


def mask(text: str, *secrets: str) -> str:
    redactor = Redactor()
    for secret in secrets:
        redactor.add(secret)
    return redactor.mask(text)


@pytest.mark.parametrize(
    ("text", "secrets", "safe"),
    [
        ("the hunter2 key", ["hunter2"], "the *** key"),
        ("the longer-secret", ["secret", "longer-secret"], "the ***"),
        ("abcdefghi", ["abcdef", "defghi"], "***"),
        ("aaaaaaaa", ["aaaa"], "***"),
        ("hunter2hunter2 x hunter2", ["hunter2"], "*** x ***"),
        ("abc", ["abc"], "abc"),
        ("a b c", [" ", "", "    "], "a b c"),
        ("key: line-two", ["line-one\nline-two\n"], "key: ***"),
        ("https://h/p%40ssword", ["p@ssword"], "https://h/***"),
        ("https://u:p@h/hunter2", ["hunter2"], "https://***@h/***"),
    ],
)
def test_redactor(text, secrets, safe):
    assert mask(text, *secrets) == safe


@given(st.lists(st.text(min_size=4, max_size=8, alphabet="abc-"), min_size=1), st.text(alphabet="abc- "))
def test_nothing_known_is_left(secrets, text):
    secrets = [secret for secret in secrets if len(secret.strip()) >= 4]
    shown = mask(f"{text}{secrets[0] if secrets else ''}{text}", *secrets)
    assert not any(secret in part for secret in secrets for part in shown.split(MASK))


def test_tokens():
    token = new_token()
    assert len(token) >= 40
    assert token != new_token()
    assert same_token(token, token)
    assert not same_token(token + "x", token)
    assert not same_token("", "")
    assert not same_token("é", token)
