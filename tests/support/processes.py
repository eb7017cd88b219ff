"""The product as its users run it: real processes, started and killed by pid."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from conveyor_runtime.kit.child import end_with_parent

CONVEYOR = [sys.executable, "-m", "conveyor_runtime"]


class Process:
    """One `conveyor ...` process, by what `command` starts it. Its output lies in `log`."""

    def __init__(self, *argv: str, env: dict[str, str], log: Path, command: Sequence[str] = CONVEYOR) -> None:
        self.argv = [*command, *argv]
        self.env = {**os.environ, **env}
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it (again)."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.argv,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=end_with_parent(),  # a test run that is killed leaves nothing
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """`kill -9`, and wait for its end."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def stop(self, timeout: float = 60.0) -> int:
        """SIGTERM; its exit code."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.terminate()
        return self._process.wait(timeout)

    @property
    def exited(self) -> int | None:
        """Its exit code, if it has ended."""
        return self._process.poll() if self._process else None


class Runtime:
    """`conveyor serve` with its embedded nats-server, and any number of driver processes, in one directory."""

    def __init__(self, folder: Path, backend: str = "native", command: Sequence[str] = CONVEYOR) -> None:
        self.folder = folder
        self.command = command
        self.ready_file = folder / "ready.json"
        self.native_root = folder / "native"
        self.env = {"CONVEYOR_NATIVE_ROOT": str(self.native_root), "CONVEYOR_BACKEND": backend}
        self.serve = Process(
            *("serve", "--data", str(folder / "data"), "--api-port", "0", "--ready-file", str(self.ready_file)),
            env=self.env,
            log=folder / "serve.log",
            command=command,
        )
        self.drivers: list[Process] = []
        self.ports: tuple[str, str] | None = None

    async def start(self) -> None:
        """Start `serve`; the second time on the ports of the first."""
        if self.ports is not None:
            api, nats = self.ports
            self.serve.argv = [*self.command, "serve", "--data", str(self.folder / "data"), "--api-port", api]
            self.serve.argv += ["--nats-port", nats, "--ready-file", str(self.ready_file)]
            self.ready_file.unlink(missing_ok=True)
        self.serve.start()
        async with asyncio.timeout(30):
            while not self.ready_file.exists():
                assert self.serve.exited is None, self.serve.log.read_text()
                await asyncio.sleep(0.05)
        self.ports = (self.api_url.rsplit(":", 1)[1], self.nats_url.rsplit(":", 1)[1])

    @property
    def api_url(self) -> str:
        return str(json.loads(self.ready_file.read_text())["api"])

    @property
    def nats_url(self) -> str:
        return str(json.loads(self.ready_file.read_text())["nats"])

    def driver(self, *argv: str, name: str = "") -> Process:
        """Start a driver process."""
        env = {**self.env, "CONVEYOR_NATS_URL": self.nats_url, "CONVEYOR_ALLOW_FILE_REPOSITORIES": "true"}
        process = Process(*argv, env=env, log=self.folder / f"{name or argv[0]}.log", command=self.command)
        process.start()
        self.drivers.append(process)
        return process

    def four_drivers(self, builders: int = 1) -> list[Process]:
        """The shipped drivers; the builders among them are returned."""
        for name in ("container-start", "git-cloner", "container-stop"):
            self.driver(name)
        return [self.driver("builder", name=f"builder-{number}") for number in range(builders)]

    def nats_pid(self) -> int:
        """The embedded server's pid: a child of `serve`."""
        children = Path(f"/proc/{self.serve.pid}/task/{self.serve.pid}/children").read_text().split()
        [pid] = [int(pid) for pid in children if b"nats-server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return pid

    def left(self) -> list[str]:
        """Sandboxes that are still there."""
        return sorted(entry.name for entry in self.native_root.glob("cv-*")) if self.native_root.exists() else []

    def logs(self) -> str:
        """What every process said, for a failing test."""
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))

    def stop(self) -> None:
        """End everything, each in order."""
        running = [process for process in [*self.drivers, self.serve] if process.exited is None]
        codes = {" ".join(process.argv): process.stop() for process in running}
        assert not any(codes.values()), f"exit codes: {codes}\n{self.logs()}"


@asynccontextmanager
async def runtime(folder: Path, backend: str = "native") -> AsyncIterator[Runtime]:
    """A started runtime without drivers; ended, whatever happens."""
    running = Runtime(folder, backend)
    try:
        await running.start()
        yield running
    finally:
        running.stop()


def make_repository(path: Path, files: dict[str, str] | None = None) -> str:
    """A git repository with one commit; its file:// URL."""
    path.mkdir(parents=True)
    for name, text in (files or {"README": "hello\n"}).items():
        (path / name).write_text(text)
    git = ["git", "-C", str(path), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    return f"file://{path}"
