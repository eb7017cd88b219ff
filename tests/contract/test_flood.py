"""A gigabyte of output: nothing is lost, and it is never in memory."""

from __future__ import annotations

import asyncio
import hashlib
import resource
from pathlib import Path

import pytest

from conveyor_runtime.orchestra import Stream
from conveyor_runtime.testing import Place

GIB = 1 << 30
LINE = b"0123456789abcdef" * 511 + b"0123456789abcd\n"  # 8191 bytes: no power of two, so that cuts fall everywhere
LONG = 50_000_000


@pytest.fixture(params=["native", pytest.param("docker", marks=pytest.mark.docker)])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def expected(line: bytes, size: int) -> str:
    digest, block = hashlib.sha256(), line * 512
    whole, rest = divmod(size, len(block))
    for _ in range(whole):
        digest.update(block)
    digest.update(block[:rest])
    return digest.hexdigest()


@pytest.mark.timeout(600)
async def test_a_gigabyte_flows_through(place: Place) -> None:
    text = LINE.decode().strip()
    container = await place.run(f"yes {text} | head -c {GIB}")
    digest, size, before, most = hashlib.sha256(), 0, resident(), 0

    async def take(stream: Stream, data: bytes) -> None:
        nonlocal size, most
        assert stream == "stdout"
        digest.update(data)
        if (size + len(data)) >> 20 != size >> 20:
            most = max(most, resident())
        size += len(data)

    async with asyncio.timeout(580):
        await container.logs(take)
    most = max(most, resident())
    assert size == GIB
    assert digest.hexdigest() == expected(LINE, GIB)
    assert most - before < 100_000_000


@pytest.mark.timeout(300)
async def test_one_line_of_fifty_megabytes_that_is_no_text(place: Place) -> None:
    pattern = r"\200\376\377\301"
    script = f"p=$(printf '{pattern}'); yes \"$p\" | tr -d '\\n' | head -c {LONG}"
    container = await place.run(script)
    digest, size, before, most = hashlib.sha256(), 0, resident(), 0

    async def take(stream: Stream, data: bytes) -> None:
        nonlocal size, most
        digest.update(data)
        size += len(data)
        most = max(most, resident())

    async with asyncio.timeout(280):
        await container.logs(take)
    assert size == LONG
    assert digest.hexdigest() == expected(b"\x80\xfe\xff\xc1", LONG)
    assert most - before < 100_000_000
