"""What `up` does with its drivers' processes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from conveyor_runtime.daemon.up import Running, UpSettings, _children
from conveyor_runtime.errors import ConfigError
from conveyor_runtime.kit.child import Child

RUNNING = Running("http://127.0.0.1:1", "nats://127.0.0.1:1", "t", cast(Any, None))


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of `conveyor NAME`: what is written to it is what the drivers do."""
    package = tmp_path / "conveyor_runtime"
    package.mkdir()
    (package / "__init__.py").touch()
    script = package / "__main__.py"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    return script


async def test_settings_that_cannot_work_are_said_at_once(driver: Path) -> None:
    driver.write_text("import sys, time\nsys.exit(2) if sys.argv[1] == 'bad' else time.sleep(60)\n")
    with pytest.raises(ConfigError, match="driver bad cannot start"):
        async with asyncio.timeout(20), _children(["good", "bad"], UpSettings(), RUNNING) as children:
            good = children.all[0]
            await asyncio.Event().wait()
    assert good.pid is None


async def test_one_that_worked_once_is_started_again_whatever_it_says(driver: Path, tmp_path: Path) -> None:
    driver.write_text(f"import sys\nopen({str(tmp_path / 'starts')!r}, 'a').write('x')\nsys.exit(2)\n")
    async with asyncio.timeout(20), _children(["one"], UpSettings(), RUNNING) as children:
        children.are_ready = True
        while len((tmp_path / "starts").read_text() if (tmp_path / "starts").exists() else "") < 2:
            await asyncio.sleep(0.02)


async def test_supervision_that_fails_is_not_overlooked(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(child: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Child, "run", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        async with asyncio.timeout(20), _children(["one"], UpSettings(), RUNNING):
            await asyncio.Event().wait()
