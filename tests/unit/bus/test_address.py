"""URLs of the bus."""

from __future__ import annotations

import pytest

from conveyor_runtime.bus.address import parse_url
from conveyor_runtime.errors import ConfigError


def test_credentials_are_taken_out_and_decoded() -> None:
    assert parse_url("nats://me:p%40ss@host:4333") == (
        ["nats://host:4333"],
        {"user": "me", "password": "p@ss"},
    )
    assert parse_url("tls://token@host") == (["tls://host:4222"], {"token": "token"})
    assert parse_url("host") == (["nats://host:4222"], {})
    assert parse_url("nats://u:p@a, nats://[::1]:1") == (
        ["nats://a:4222", "nats://[::1]:1"],
        {"user": "u", "password": "p"},
    )


@pytest.mark.parametrize("url", ["", "http://a", "ws://u:secret@a", "nats://u:secret@a:port", "nats://"])
def test_a_url_that_cannot_work_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)
