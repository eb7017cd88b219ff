"""Frames and answers, byte by byte."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from nats.aio.client import Client

from conveyor_runtime.bus import wire
from conveyor_runtime.bus.link import _Client
from conveyor_runtime.errors import BusError


def answer(data: bytes = b"", headers: dict[str, str] | None = None) -> Any:
    return SimpleNamespace(data=data, headers=headers)


def test_frames_with_and_without_headers() -> None:
    assert wire.assemble("a.b", b"", b"xyz", "in.1") == b"PUB a.b in.1 3\r\nxyz\r\n"
    message = wire.Message("a.b", b"xyz", msg_id="m", expect=0, headers={"K": "ü"}, ttl=1.2)
    lines = wire.header_lines(message)
    expected = (
        "NATS/1.0\r\nK: ü\r\nNats-Msg-Id: m\r\nNats-Expected-Last-Subject-Sequence: 0\r\nNats-TTL: 2\r\n\r\n"
    ).encode()
    frame = wire.assemble("a.b", lines, b"xyz", "in.1")
    assert frame == b"HPUB a.b in.1 %d %d\r\n" % (len(expected), len(expected) + 3) + expected + b"xyz\r\n"


@pytest.mark.parametrize("subject", ["", "a b", "a\tb", "a\r\nb", "ä"])
def test_a_subject_cannot_carry_another_command(subject: str) -> None:
    with pytest.raises(BusError, match="not a subject"):
        wire.header_lines(wire.Message(subject, b""))


@pytest.mark.parametrize("text", ["a\r\nB: c", "a\nb", "a\rb", "\n"])
def test_a_header_cannot_carry_another(text: str) -> None:
    for message in (
        wire.Message("s", b"", headers={"A": text}),
        wire.Message("s", b"", headers={text: "a"}),
        wire.Message("s", b"", msg_id=text),
    ):
        with pytest.raises(BusError, match="line break"):
            wire.header_lines(message)


def test_answers_to_a_publish() -> None:
    ack = wire.decode_ack(answer(b'{"stream":"s","seq":7,"duplicate":true}'))
    assert (ack.seq, ack.duplicate, ack.error) == (7, True, 0)
    ack = wire.decode_ack(answer(b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 5"}}'))
    assert (ack.error, ack.status, ack.transient) == (10071, 400, False)
    assert wire.decode_ack(answer(headers={"Status": "503"})).transient
    for data in (b"", b"{}", b"[]", b"null", b'{"error":3}'):
        assert wire.decode_ack(answer(data)).error


def test_where_a_delivery_comes_from() -> None:
    short = wire.origin("$JS.ACK.messages.cvpy-d.2.10.5.1700000000123456789.3")
    assert short == (2, 10, 5, 1700000000123456789, 3)
    assert wire.origin("$JS.ACK.hub.ACC.messages.cvpy-d.2.10.5.1700000000123456789.3.rnd") == short
    assert wire.time_of(short.time_ns) == datetime(2023, 11, 14, 22, 13, 20, 123456, UTC)


def test_times_of_the_server() -> None:
    assert wire.parse_time("2026-11-21T12:00:00Z") == datetime(2026, 11, 21, 12, 0, 0, 0, UTC)
    assert wire.parse_time("2026-11-21T12:00:00.1Z") == datetime(2026, 11, 21, 12, 0, 0, 100000, UTC)
    assert wire.parse_time("2026-11-21T12:00:00.123456789Z") == datetime(2026, 11, 21, 12, 0, 0, 123456, UTC)


def test_headers_are_read_by_us_in_place_of_the_client() -> None:
    assert callable(Client._parse_header_lines), "what we replace is still there"
    read = _Client._parse_header_lines(b"A: 1\r\nB:2: 3\r\nno header\r\nA: 4\r\nC: \xc3\xbc\xff \r\n\r\n")
    assert read == {"A": "1", "B": "2: 3", "C": "ü\ufffd"}


def test_stored_headers() -> None:
    assert wire.parse_headers(b"NATS/1.0\r\nA: 1\r\nB:2: 3\r\nA: 4\r\n\r\n") == {"A": "1", "B": "2: 3"}
