"""Copies into docker's containers and volumes: they hold up nobody, and end with whoever asked for them."""

from __future__ import annotations

import asyncio
import io
import tarfile
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conveyor_runtime.orchestra import VolumeCopy
from conveyor_runtime.orchestra.archive import tar_stream
from conveyor_runtime.orchestra.docker import transfer
from conveyor_runtime.orchestra.docker.client import Engine
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
    for size in ("_WORKERS", "_TRANSFERS"):
        monkeypatch.setattr(f"conveyor_runtime.orchestra.docker.client.{size}", 2)
    backend = await docker_place.open()
    # Three, because the engine itself lets nothing else into a container while it unpacks there.
    one, two, three = [
        await backend.start_sandbox(docker_place.ns(), docker_place.task(id=name), docker_place.owner())
        for name in ("one", "two", "three")
    ]
    copying = [asyncio.create_task(sandbox.copy_in(tmp_path, "to")) for sandbox in (one, two)]
    try:
        await until(lambda: held == 2)
        waiting = asyncio.create_task(three.copy_in(tmp_path, "to"))
        async with asyncio.timeout(20):
            assert (await run(three, "true"))[0].exit_code == 0
            await backend.start_sandbox(docker_place.ns(), docker_place.task(id="four"), docker_place.owner())
            waiting.cancel()  # it waits for the others, but not for that
            await asyncio.wait([waiting])
    finally:
        go.set()
        await asyncio.gather(*copying)
    assert waiting.cancelled()


class Halting:
    """Hands on pieces up to the third, and then waits."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = iter(pieces)
        self.taken = 0
        self.go = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.pieces:
            if self.taken == 3:
                self.go.wait(30)
            self.taken += 1
            yield piece


async def cancelled(copy: Coroutine[Any, Any, None], halting: Halting) -> None:
    task = asyncio.create_task(copy)
    await until(lambda: halting.taken == 3)
    task.cancel()
    await asyncio.sleep(0)
    halting.go.set()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_cancelled_copy_writes_no_more(
    docker_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, size in ((old, 20 << 20), (new, 1)):
        folder.mkdir()
        (folder / folder.name).write_bytes(bytes(size))
    halting = Halting(tar_stream(old))
    sandbox = await docker_place.sandboxes().start_sandbox(docker_place.ns(), docker_place.task(), docker_place.owner())
    monkeypatch.setattr("conveyor_runtime.orchestra.docker.sandbox.tar_stream", lambda source: iter(halting))
    await cancelled(sandbox.copy_in(old, "to"), halting)
    monkeypatch.undo()
    await sandbox.copy_in(new, "to")
    assert halting.taken < 6
    assert (await run(sandbox, "ls to"))[1].stdout == b"new\n"


async def test_a_cancelled_copy_into_a_volume_writes_no_more(
    docker_place: Place, docker_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    halting = Halting(())

    async def put(engine: Engine, container: str, path: str, archive: Iterable[bytes]) -> None:
        halting.pieces = iter(archive)
        await transfer.put(engine, container, path, halting)

    async def archive() -> AsyncIterator[bytes]:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            member = tarfile.TarInfo("file")
            member.size = 20 << 20
            tar.addfile(member, io.BytesIO(bytes(member.size)))
        yield buffer.getvalue()

    volume = await docker_place.backend.create_volume(docker_place.ns(), "data", docker_place.owner())
    assert isinstance(volume, VolumeCopy)
    monkeypatch.setattr("conveyor_runtime.orchestra.docker.volume.put", put)
    await cancelled(volume.copy_in(archive()), halting)
    assert halting.taken < 6
    assert docker_engine.containers(all=True, filters={"volume": f"{docker_place.ns()}.data"}) == []
