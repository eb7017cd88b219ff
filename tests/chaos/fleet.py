"""The processes of the runtime and of NATS: started, killed, frozen, started again; every life of each on record."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conveyor_runtime.kit.child import end_with_parent
from tests.chaos import journal
from tests.chaos.proxy import Proxy
from tests.chaos.worker import TYPE

ROOT = Path(__file__).parents[2]

#: What every process of a run bears in its environment, so that the process table tells what was left behind.
MARK = "CONVEYOR_CHAOS_MARK"

#: The driver built on another SDK, where there is one.
FOREIGN = "chaos-go"

_CONVEYOR = (sys.executable, "-m", "conveyor_runtime")


@dataclass
class Span:
    """Something that was so from `begin` to `end` (None = still), on `time.monotonic()`."""

    what: str
    begin: float
    end: float | None = None

    def covers(self, at: float, slack: float = 0.0) -> bool:
        """Whether it was so then."""
        return self.begin - slack <= at and (self.end is None or at <= self.end + slack)

    def touches(self, begin: float, end: float) -> bool:
        """Whether it was so at any moment between."""
        return self.begin <= end and (self.end is None or self.end >= begin)


@dataclass
class Life:
    """One process from start to end; `frozen` are the times it was stopped."""

    pid: int
    began: float
    ended: float | None = None
    code: int | None = None
    frozen: list[Span] = field(default_factory=list)


class Member:
    """One place in the fleet, which a process fills; `wanted` is whether it is to be started again when it dies."""

    def __init__(self, name: str, argv: Sequence[str], env: dict[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.lives: list[Life] = []
        self.trouble: list[Span] = []
        self.proxy: Proxy | None = None
        self.wanted = True
        self._argv = list(argv)
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def life(self) -> Life:
        """The present one, or the last."""
        return self.lives[-1]

    @property
    def alive(self) -> bool:
        """Whether its process runs (or is frozen)."""
        return bool(self.lives) and self.life.ended is None

    @property
    def frozen(self) -> bool:
        """Whether its process is stopped now."""
        return self.alive and bool(self.life.frozen) and self.life.frozen[-1].end is None

    def start(self) -> None:
        """Start a process."""
        began = time.monotonic()
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._argv,
                env=self._env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=end_with_parent(),
            )
        life = Life(self._process.pid, began)
        self.lives.append(life)
        threading.Thread(target=_watch, args=(self._process, life), daemon=True).start()

    def kill(self) -> None:
        """`kill -9`, and wait for its end."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(10)

    def freeze(self) -> None:
        """SIGSTOP."""
        self.life.frozen.append(Span("frozen", time.monotonic()))
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        if self.frozen:
            self.signal(signal.SIGCONT)
            self.life.frozen[-1].end = time.monotonic()

    def signal(self, number: int) -> None:
        """Send it a signal, if it lives."""
        assert self._process is not None
        self._process.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.signal(signal.SIGTERM)

    def wait(self, seconds: float = 60.0) -> int | None:
        """Its exit code; None if it had to be killed."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None


def _watch(process: subprocess.Popen[bytes], life: Life) -> None:
    code = process.wait()
    life.ended, life.code = time.monotonic(), code


class Fleet:
    """Everything that can be broken: `servers`, `engines`, `workers`, the `foreign` one among them; `outages` are the
    times NATS was away."""

    def __init__(self, folder: Path, replicas: int = 1, go_driver: Path | None = None) -> None:
        self.folder = folder
        self.native_root = folder / "native"
        self.journal = folder / "journal.jsonl"
        self.mark = folder.name
        self.replicas = replicas
        self.outages: list[Span] = []
        self._ports = _free_ports()
        self.nats_ports = [next(self._ports) for _ in range(replicas)]
        self.api_ports = [next(self._ports) for _ in range(2)]
        self.servers = [self._server(number) for number in range(replicas)]
        self.engines = [self._engine(number) for number in range(2)]
        self.workers = [
            self._worker(f"{name}-{number}", "driver", "run", f"tests.chaos.worker:{name}")
            for name in ("first", "second")
            for number in range(2)
        ]
        self.workers += [self._worker(name, name) for name in ("container-start", "builder", "container-stop")]
        self.foreign = self._foreign(go_driver) if go_driver is not None else None
        self.workers += [self.foreign] if self.foreign is not None else []

    @property
    def members(self) -> list[Member]:
        """Every place in the fleet."""
        return [*self.servers, *self.engines, *self.workers]

    @property
    def nats_url(self) -> str:
        """All servers, past every proxy."""
        return ",".join(f"nats://127.0.0.1:{port}" for port in self.nats_ports)

    @property
    def api_urls(self) -> list[str]:
        """Both APIs."""
        return [f"http://127.0.0.1:{port}" for port in self.api_ports]

    def lives(self) -> dict[int, tuple[Member, Life]]:
        """Every process there ever was, by pid."""
        return {life.pid: (member, life) for member in self.members for life in member.lives}

    async def start_proxies(self) -> None:
        """Let the proxies listen."""
        for member in self.members:
            if member.proxy is not None:
                await member.proxy.start()

    def _server(self, number: int) -> Member:
        folder = self.folder / f"nats-{number}"
        folder.mkdir()
        config: dict[str, object] = {
            "server_name": f"chaos-{number}",
            "listen": f"127.0.0.1:{self.nats_ports[number]}",
            "max_payload": 4 << 20,
            "jetstream": {"store_dir": str(folder), "sync_interval": "always"},
        }
        if self.replicas > 1:
            routes = [f"nats://127.0.0.1:{port + 10_000}" for port in self.nats_ports]
            listen = f"127.0.0.1:{self.nats_ports[number] + 10_000}"
            # Not told of the other servers, a client stays behind its proxy.
            config["cluster"] = {"name": "chaos", "listen": listen, "routes": routes, "no_advertise": True}
        path = self.folder / f"nats-{number}.conf"
        path.write_text(json.dumps(config))
        beside = Path(sys.executable).parent / "nats-server"
        binary = str(beside) if beside.exists() else shutil.which("nats-server") or "nats-server"
        return Member(f"nats-{number}", [binary, "--config", str(path)], self._environment(), self.folder)

    def _engine(self, number: int) -> Member:
        port = str(self.api_ports[number])
        argv = [*_CONVEYOR, "serve", "--data", str(self.folder / f"serve-{number}"), "--api-port", port]
        argv += ["--replicas", str(self.replicas)]
        return self._proxied(f"engine-{number}", argv)

    def _worker(self, name: str, *argv: str) -> Member:
        return self._proxied(name, [*_CONVEYOR, *argv])

    def _foreign(self, program: Path) -> Member:
        """A driver that is not ours: it is told by its arguments where the bus is."""
        proxy = Proxy(next(self._ports), self.nats_ports)
        argv = [str(program), f"nats://127.0.0.1:{proxy.port}", FOREIGN, TYPE, "200ms"]
        member = Member(FOREIGN, argv, self._environment(), self.folder)
        member.proxy = proxy
        return member

    def _proxied(self, name: str, argv: list[str]) -> Member:
        proxy = Proxy(next(self._ports), self.nats_ports)
        env = self._environment(CONVEYOR_NATS_URL=f"nats://127.0.0.1:{proxy.port}")
        member = Member(name, argv, env, self.folder)
        member.proxy = proxy
        return member

    def _environment(self, **extra: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("CONVEYOR_")}
        own = {MARK: self.mark, journal.VARIABLE: str(self.journal), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
        native = {"CONVEYOR_NATIVE_ROOT": str(self.native_root), "CONVEYOR_BACKEND": "native"}
        return {**kept, **own, **native, **extra}


def _free_ports() -> Iterator[int]:
    """Ports below those the kernel gives out by itself: still free when a process comes back to its own."""
    offset = os.getpid() * 37 % 10_000
    for number in range(10_000):
        port = 12_000 + (offset + number) % 10_000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
