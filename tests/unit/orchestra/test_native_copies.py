"""Copies into a native sandbox that overtake one another."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from conveyor_runtime.errors import BackendError, Gone
from conveyor_runtime.orchestra import Owner, Task
from conveyor_runtime.orchestra.native import NativeBackend, sandbox
from conveyor_runtime.orchestra.native.copies import Copies
from conveyor_runtime.orchestra.native.sandbox import NativeSandbox

OWNER = Owner("inst", "run", "start", 1, 0)
NS = "cv-inst-copies"


class StandsStill:
    """The first file takes until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.reached = threading.Event()
        self._copy = sandbox._copy_file
        monkeypatch.setattr(sandbox, "_copy_file", self)

    def __call__(self, one: str, other: str) -> None:
        if not self.reached.is_set():
            self.reached.set()
            assert self.go.wait(30)
        self._copy(one, other)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("new")
    return tmp_path / "source"


async def made(tmp_path: Path) -> NativeSandbox:
    return await NativeBackend(tmp_path / "root").start_sandbox(NS, Task("x"), OWNER)


@pytest.mark.parametrize(("first", "then"), [(".", "."), ("a/b", "."), (".", "a"), ("a", "a/b"), ("a", "a")])
async def test_a_copy_that_is_overtaken_leaves_the_workspace_alone(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, first: str, then: str
) -> None:
    place = await made(tmp_path)
    still = StandsStill(monkeypatch)
    slow = asyncio.create_task(place.copy_in(source, first))
    assert await asyncio.to_thread(still.reached.wait, 30)
    await place.copy_in(source, then)
    built = Path(place.workspace) / then / "built"
    built.touch()
    still.go.set()
    with pytest.raises(BackendError, match="later copy"):
        await slow
    assert built.exists()
    assert (Path(place.workspace) / then / "file").read_text() == "new"
    assert not list((tmp_path / "root" / NS / "x/tmp").iterdir())


async def test_copies_beside_each_other_do_not_meet(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = await made(tmp_path)
    still = StandsStill(monkeypatch)
    slow = asyncio.create_task(place.copy_in(source, "a/b"))
    assert await asyncio.to_thread(still.reached.wait, 30)
    await place.copy_in(source, "a/bc")
    still.go.set()
    await slow
    assert sorted(path.name for path in (Path(place.workspace) / "a").iterdir()) == ["b", "bc"]


async def test_a_copy_into_one_that_was_removed_does_not_reach_the_next(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = await made(tmp_path)
    still = StandsStill(monkeypatch)
    slow = asyncio.create_task(place.copy_in(source, "."))
    assert await asyncio.to_thread(still.reached.wait, 30)
    await place.cleanup()
    next_one = await made(tmp_path)
    still.go.set()
    with pytest.raises((BackendError, Gone)):
        await slow
    assert list(Path(next_one.workspace).iterdir()) == []


async def test_one_that_stands_still_with_its_turn_holds_nobody_for_ever(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor_runtime.orchestra.native.copies._PATIENCE", 0.1)
    place = await made(tmp_path)
    copies = Copies(tmp_path / "root" / NS / "x")
    with copies.turn(copies.begin(".")), pytest.raises(BackendError, match="does not end"):
        await place.copy_in(source, ".")
    await place.copy_in(source, ".")
    assert (Path(place.workspace) / "file").exists()
