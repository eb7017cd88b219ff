"""LineSplitter: the same lines however the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from conveyor_runtime.kit.lines import LineSplitter


def split(*chunks: bytes, max_bytes: int = 16 * 1024) -> list[str]:
    splitter = LineSplitter(max_bytes)
    return [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.flush()


def test_lines_come_when_they_are_complete() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"a\nb") == ["a"]
    assert splitter.feed(b"c\n\n") == ["bc", ""]
    assert splitter.feed(b"rest") == []
    assert splitter.flush() == ["rest"]
    assert splitter.flush() == []


def test_carriage_returns() -> None:
    assert split(b"a\r\nb\r\n") == ["a", "b"]
    assert split(b"a\r", b"\nb") == ["a", "b"]
    assert split(b"10%\r50%\r100%\n") == ["100%"]
    assert split(b"10%\r", b"50%\r", b"done\r\n") == ["done"]
    assert split(b"10%\r50%") == ["50%"]
    assert split(b"last\r") == ["last"]
    assert split(b"\r\r\n") == [""]


def test_broken_and_split_utf8() -> None:
    assert split(b"\xe2\x82", b"\xac\n") == ["€"]
    assert split(b"\xff\xfe\n") == ["\ufffd\ufffd"]
    assert split(b"cut \xe2\x82") == ["cut \ufffd"]


def test_long_lines_are_cut_between_characters() -> None:
    lines = split("€".encode() * 10_000 + b"\nshort\n", max_bytes=1000)
    assert lines[-1] == "short"
    assert "".join(lines[:-1]) == "€" * 10_000
    assert all(len(line.encode()) <= 1000 for line in lines)


def test_a_line_of_fifty_megabytes() -> None:
    lines = split(b"x" * 50_000_000, b"\n")
    assert sum(map(len, lines)) == 50_000_000
    assert max(map(len, lines)) == 16 * 1024


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=6))
def test_how_it_is_cut_makes_no_difference(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    chunks = [data[start:end] for start, end in pairwise(edges)]
    assert split(*chunks, max_bytes=16) == split(data, max_bytes=16)


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=50)))
def test_text_without_returns_is_kept(lines: list[str]) -> None:
    assert split("".join(f"{line}\n" for line in lines).encode()) == lines
