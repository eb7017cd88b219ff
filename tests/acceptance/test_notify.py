"""What a service manager hears of `conveyor serve` and of a driver, from the start to the end, and Prometheus of it."""

from __future__ import annotations

import contextlib
import socket
import time
import urllib.request
from pathlib import Path

import pytest

from tests.support.processes import Process
from tests.support.registry import free_port

pytestmark = pytest.mark.timeout(90)


def wait_for(sock: socket.socket, said: list[str], count: int, word: str) -> None:
    give_up = time.monotonic() + 30
    while said.count(word) < count:
        sock.settimeout(max(give_up - time.monotonic(), 0.01))
        said.append(sock.recv(100).decode())


def read_what_waits(sock: socket.socket, said: list[str]) -> None:
    """The kernel keeps ten messages that nobody reads, and drops what comes then."""
    sock.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            said.append(sock.recv(100).decode())


def test_ready_watchdog_stopping(tmp_path: Path) -> None:
    env, said = {}, dict[str, list[str]]()
    processes: list[Process] = []
    socks, metrics = [], free_port()
    try:
        cloner = ("--backend", "native", "--metrics", str(metrics))
        for name, argv in {"serve": ("--api-port", "0"), "git-cloner": cloner}.items():
            path = tmp_path / f"{name}.socket"
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            socks.append(sock)
            sock.bind(str(path))
            env = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "400000", "CONVEYOR_DATA": str(tmp_path / "data")}
            env["CONVEYOR_NATIVE_ROOT"] = str(tmp_path / "native")
            process = Process(name, *argv, env=env, log=tmp_path / f"{name}.log")
            processes.append(process)
            process.start()
            heard = said[name] = []
            wait_for(sock, heard, 1, "READY=1")
            wait_for(sock, heard, heard.count("WATCHDOG=1") + 2, "WATCHDOG=1")
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        assert {"conveyor_bus_connected 1.0", 'conveyor_slots{driver="git-cloner"} 4.0'} < set(lines)
        assert 'conveyor_jobs{driver="git-cloner"} 0.0' in lines
        for process, sock, heard in reversed(list(zip(processes, socks, said.values(), strict=True))):
            read_what_waits(sock, heard)
            assert "STOPPING=1" not in heard
            assert process.stop() == 0, process.log.read_text()
            wait_for(sock, heard, 1, "STOPPING=1")
            assert heard.count("READY=1") == 1
    finally:
        for process in reversed(processes):
            process.stop()
        for sock in socks:
            sock.close()
