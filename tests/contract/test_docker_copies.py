"""Copies into docker's containers and volumes: they hold up nobody, and end with whoever asked for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from conveyor_runtime.orchestra.archive import tar_stream
from conveyor_runtime.testing import Place, run
from tests.contract.conftest import until

pytestmark = pytest.mark.docker


async def test_copies_that_take_long_hold_up_no_call(
    docker_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, held = threading.Event(), 0

    def slowly(source: Path) -> Iterator[bytes]:
        nonlocal held
        held += 1
        go.wait(30)
        yield from tar_stream(source)

    monkeypatch.setattr("conveyor_runtime.orchestra.docker.sandbox.tar_stream", slowly)
    backend = await docker_place.open()  # the engine itself lets nothing else into a container while it unpacks there
    other, sandbox = [
        await backend.start_sandbox(docker_place.ns(), docker_place.task(id=name), docker_place.owner())
        for name in ("other", "sandbox")
    ]
    copying = [asyncio.create_task(sandbox.copy_in(tmp_path, f"to/{number}")) for number in range(20)]
    try:
        await until(lambda: held >= 8)
        async with asyncio.timeout(10):
            assert (await run(other, "true"))[0].exit_code == 0
    finally:
        go.set()
        await asyncio.gather(*copying)
