"""Three nats-servers that are one cluster."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from conveyor_runtime.bus import Bus
from conveyor_runtime.bus.streams import stream_info
from conveyor_runtime.errors import BusError
from conveyor_runtime.kit.child import end_with_parent
from tests.support.registry import free_port

NAMES = ("one", "two", "three")


@dataclass
class Servers:
    """Those that run, by name."""

    folder: Path
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in NAMES})
    routes: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in NAMES})
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """All of them."""
        return ",".join(f"nats://127.0.0.1:{port}" for port in self.ports.values())

    def start(self, name: str) -> None:
        """Start one, on the data it had."""
        config = {
            "server_name": name,
            "listen": f"127.0.0.1:{self.ports[name]}",
            "max_payload": 4 << 20,
            "jetstream": {"store_dir": str(self.folder / name)},
            "cluster": {
                "name": "three",
                "listen": f"127.0.0.1:{self.routes[name]}",
                "routes": [f"nats://127.0.0.1:{port}" for port in self.routes.values()],
            },
        }
        path = self.folder / f"{name}.conf"
        path.write_text(json.dumps(config))
        beside = Path(sys.executable).parent / "nats-server"
        binary = str(beside) if beside.exists() else shutil.which("nats-server") or "nats-server"
        log = (self.folder / f"{name}.log").open("ab")
        self.running[name] = subprocess.Popen(
            [binary, "--config", str(path)], stdout=log, stderr=log, preexec_fn=end_with_parent()
        )
        log.close()

    def kill(self, name: str) -> None:
        """kill -9."""
        process = self.running.pop(name)
        process.kill()
        process.wait()


async def leader_of(bus: Bus, stream: str, *, but: str = "") -> str:
    """Who leads a stream, as soon as somebody other than `but` does."""
    async with asyncio.timeout(60):
        while True:
            try:
                info = await stream_info(bus, stream)
            except BusError:
                info = None
            leader = str((info or {}).get("cluster", {}).get("leader") or "")
            if leader and leader != but:
                return leader
            await asyncio.sleep(0.1)


@asynccontextmanager
async def three_servers(folder: Path) -> AsyncIterator[Servers]:
    """They run, and agree on a leader of their own."""
    servers = Servers(folder)
    try:
        for name in NAMES:
            servers.start(name)
        bus = await Bus.connect(servers.url, name="test", patience=30.0)
        async with asyncio.timeout(60):
            while True:
                try:
                    await bus.api("INFO", timeout=1.0)
                    break
                except BusError:
                    await asyncio.sleep(0.1)
        await bus.close()
        yield servers
    finally:
        for name in list(servers.running):
            servers.kill(name)
