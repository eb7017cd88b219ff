"""The embedded server: kept alive, kept to itself, and gone when it should be."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from conveyor_runtime.bus import Bus, EmbeddedServer, server_setup
from conveyor_runtime.bus.streams import LOGS, ensure_streams, last_by_subject
from conveyor_runtime.errors import BusError, BusUnavailable, ConfigError
from conveyor_runtime.telemetry import metrics
from tests.conftest import StartServer


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def gone(pid: int, timeout: float = 10.0) -> None:
    async with asyncio.timeout(timeout):
        while alive(pid):
            await asyncio.sleep(0.02)


async def test_a_killed_server_is_back_on_its_port_with_its_data(start_server: StartServer) -> None:
    server = await start_server(sync="always")
    bus = await Bus.connect(server.url, name="test")
    await ensure_streams(bus)
    await bus.publish("logs.a", b"kept")
    pid, url, restarts = server.pid, server.url, _restarts()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await bus.publish("logs.a", b"after", msg_id="after")
    assert server.url == url
    assert server.pid not in (pid, None)
    assert _restarts() == restarts + 1
    message = await last_by_subject(bus, LOGS, "logs.a")
    assert message is not None
    assert (message.seq, message.data) == (2, b"after")
    await bus.close()


@pytest.mark.timeout(180)
async def test_a_server_that_hangs_is_killed_and_started_again(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("conveyor_runtime.bus.server.PROBE", 0.3)
    monkeypatch.setattr("conveyor_runtime.bus.server.MOST_MISSED", 3)
    server = await start_server(sync="always")
    bus = await Bus.connect(server.url, name="test")
    await ensure_streams(bus)
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await gone(pid)
    # What was killed is not quite gone while one of its threads syncs to a disk that others fill.
    await bus.publish("logs.a", b"after", msg_id="after", deadline=120)
    assert server.pid not in (pid, None) and "has not answered" in caplog.text
    await bus.close()


async def test_a_server_that_stands_still_for_a_moment_is_left_alone(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyor_runtime.bus.server.PROBE", 0.3)
    monkeypatch.setattr("conveyor_runtime.bus.server.MOST_MISSED", 3)
    server = await start_server()
    pid = server.pid
    assert pid is not None
    for _ in range(3):
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.7)  # one or two looks
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(1.0)
    assert server.pid == pid and alive(pid)


def slow_server(folder: Path, first: str) -> str:
    """A real server that does something else for 3 s before it starts."""
    path, real = folder / "slow", shutil.which("nats-server") or str(Path(sys.executable).parent / "nats-server")
    path.write_text(
        f"#!{sys.executable}\nimport os, sys, time\nend = time.monotonic() + 3\nwith open('/dev/zero', 'rb') as zero:\n"
        f"    while time.monotonic() < end:\n        {first}\nos.execv({real!r}, ['nats-server', *sys.argv[1:]])\n"
    )
    path.chmod(0o755)
    return str(path)


async def test_a_server_that_reads_a_large_store_is_waited_for(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def find() -> str:
        return slow_server(tmp_path, "zero.read(100_000); time.sleep(0.01)")

    monkeypatch.setattr("conveyor_runtime.bus.server.START_TIMEOUT", 1.0)
    monkeypatch.setattr("conveyor_runtime.bus.server.find_server", find)
    await start_server()


async def test_a_server_that_does_nothing_at_its_start_is_given_up(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def find() -> str:
        return slow_server(tmp_path, "time.sleep(0.1)")

    monkeypatch.setattr("conveyor_runtime.bus.server.START_TIMEOUT", 0.3)
    monkeypatch.setattr("conveyor_runtime.bus.server.PROGRESS", 10 << 20)
    monkeypatch.setattr("conveyor_runtime.bus.server.find_server", find)
    with pytest.raises(BusError, match="did not come up"):
        await start_server()


async def test_stop_leaves_no_process_and_the_data_serves_again(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(data_dir=tmp_path / "d", sync="always")
    pid, credentials = server.pid, server.url.rpartition("@")[0]
    assert pid is not None
    bus = await Bus.connect(server.url, name="test")
    await ensure_streams(bus)
    await bus.publish("logs.a", b"kept")
    await bus.close()
    await server.stop()
    assert not alive(pid)
    await server.stop()
    again = await start_server(data_dir=tmp_path / "d")
    assert again.url.startswith(credentials)
    bus = await Bus.connect(again.url, name="test")
    assert await last_by_subject(bus, LOGS, "logs.a") is not None
    await bus.close()


async def test_what_it_keeps_is_private(start_server: StartServer, tmp_path: Path) -> None:
    await start_server(data_dir=tmp_path / "d")
    for name in ("credentials.json", "nats-server.conf"):
        assert stat.S_IMODE((tmp_path / "d" / name).stat().st_mode) == 0o600


async def test_a_server_that_ignores_the_term_signal_is_killed(start_server: StartServer) -> None:
    server = await start_server()
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await server.stop(grace=0.2)
    assert not alive(pid)


async def test_a_taken_port_is_named(start_server: StartServer) -> None:
    first = await start_server()
    port = int(first.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is taken"):
        await start_server(port=port)


async def test_a_free_port_is_taken_again_unless_another_has_it(start_server: StartServer, tmp_path: Path) -> None:
    first = await start_server(data_dir=tmp_path / "d")
    url = first.url
    await first.stop()
    again = await start_server(data_dir=tmp_path / "d")
    assert again.url == url
    await again.stop()
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", int(url.rpartition(":")[2])))
        squatter.listen()
        elsewhere = await start_server(data_dir=tmp_path / "d")
        assert elsewhere.url != url
    moved = elsewhere.url
    await elsewhere.stop()
    assert (await start_server(data_dir=tmp_path / "d")).url == moved


async def test_a_data_directory_serves_one_server(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_setup, "LOCK_PATIENCE", 0.5)
    await start_server(data_dir=tmp_path / "d")
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}; stop that one"):
        await start_server(data_dir=tmp_path / "d")


async def test_a_server_that_does_not_come_up_shows_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("in the way")
    server = EmbeddedServer(tmp_path)
    with pytest.raises(BusError, match="did not come up") as caught:
        await server.start()
    assert "Can't start JetStream" in str(caught.value)
    assert server.pid is None


@pytest.mark.parametrize("sync", ["", "0s", "2 m", "never", "1.5s", "5d"])
def test_a_sync_interval_is_checked(tmp_path: Path, sync: str) -> None:
    with pytest.raises(ConfigError, match="sync"):
        EmbeddedServer(tmp_path, sync=sync)


async def test_the_settings_arrive(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(sync="always")
    bus = await Bus.connect(server.url, name="test")
    assert bus.max_payload >= 1 << 20
    limits = (await bus.api("INFO"))["limits"]
    assert limits["max_storage"] in (-1, 0)
    await bus.close()


async def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    program = """
        import asyncio, sys
        from pathlib import Path
        from conveyor_runtime.bus import EmbeddedServer
        async def main():
            server = EmbeddedServer(Path(sys.argv[1]))
            await server.start()
            print(server.pid, flush=True)
            await asyncio.sleep(600)
        asyncio.run(main())
    """
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(program), str(tmp_path), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), 20))
    assert alive(pid)
    os.kill(pid, signal.SIGSTOP)  # an orphan that does not go yet still holds its data directory
    parent.kill()
    await parent.wait()
    try:
        with (tmp_path / "lock").open("r+") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.kill(pid, signal.SIGCONT)
    await gone(pid)
    successor = EmbeddedServer(tmp_path)  # the lock went with the orphan
    await successor.start()
    await successor.stop()


async def test_an_old_or_missing_binary_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no nats-server found"):
        await server_setup.find_server()
    fake = tmp_path / "nats-server"
    fake.write_text("#!/bin/sh\necho nats-server: v2.11.9\n")
    fake.chmod(0o755)
    with pytest.raises(ConfigError, match=r"2\.11\.9; 2\.12\.1 or newer"):
        await server_setup.find_server()


async def test_connecting_says_what_is_wrong(start_server: StartServer) -> None:
    server = await start_server()
    secret = server.url.split(":")[2].split("@")[0]
    with pytest.raises(BusUnavailable, match="credentials") as caught:
        await Bus.connect(server.url.replace(secret, "wrong"), name="test")
    assert "wrong" not in str(caught.value)
    await server.stop()
    with pytest.raises(BusUnavailable, match="check that nats-server runs") as caught:
        await Bus.connect(server.url, name="test", patience=0.3)
    assert secret not in str(caught.value)
    with pytest.raises(ConfigError):
        await Bus.connect("http://somewhere", name="test")


def _restarts() -> float:
    return metrics.REGISTRY.get_sample_value("conveyor_bus_server_restarts_total") or 0.0
