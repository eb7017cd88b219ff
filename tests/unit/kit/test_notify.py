"""What the service manager hears, on a real socket of its own."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from conveyor_runtime.kit.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = str(tmp_path / "notify") if request.param == "path" else f"@conveyor-test-{os.getpid()}"
        sock.bind(name.replace("@", "\0"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


def heard(manager: socket.socket) -> list[str]:
    said = []
    while True:
        try:
            said.append(manager.recv(100).decode())
        except BlockingIOError:
            return said


def test_ready_and_stopping(manager: socket.socket) -> None:
    notifier = Notifier()
    notifier.ready()
    notifier.stopping()
    assert heard(manager) == ["READY=1", "STOPPING=1"]
    assert "NOTIFY_SOCKET" not in os.environ, "children must not speak for us"


@pytest.mark.looptime
async def test_the_watchdog_is_fed_at_half_its_time(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    async with Notifier().alive():
        await asyncio.sleep(35)
        assert heard(manager) == ["WATCHDOG=1"] * 4
    await asyncio.sleep(35)
    assert heard(manager) == []


@pytest.mark.looptime
@pytest.mark.parametrize("variables", [{}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "x"}])
async def test_a_watchdog_of_somebody_else_is_not(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    async with Notifier().alive():
        await asyncio.sleep(10)
    assert heard(manager) == []


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Notifier().ready()
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Notifier().ready()
