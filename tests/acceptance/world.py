"""The product as its users have it: processes, files, exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from conveyor_runtime.kit.child import end_with_parent

T = TypeVar("T")

CONVEYOR = (sys.executable, "-m", "conveyor_runtime")

#: Commands that a signal ends as it ends any tool; all others are services, and end in order.
TOOLS = ("logs", "run", "rerun", "get", "demo")

#: What every process of a test bears in its environment, so that the process table tells what it left behind.
MARK = "CONVEYOR_TEST_MARK"


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment without settings of the person who runs the tests."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("CONVEYOR_", "GIT_", "COLUMNS"))}
    return {**kept, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **extra}


def eventually(look: Callable[[], T], seconds: float = 20.0, what: str = "") -> T:
    """What `look` returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or look}"
        time.sleep(0.02)
    return found


class Process:
    """A command under way, its output read as it comes."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], cwd: Path) -> None:
        self.out = ""
        self.err = ""
        self.stopped: int | None = None
        self.arguments = tuple(arguments)
        self._process = subprocess.Popen(
            [*CONVEYOR, *arguments],
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=end_with_parent(),  # a test run that is killed leaves nothing either
        )
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ, "out")
        self._selector.register(self._process.stderr, selectors.EVENT_READ, "err")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def until(self, text: str, seconds: float = 30.0) -> None:
        """Read until `text` has appeared on stdout or stderr."""
        deadline = time.monotonic() + seconds
        while text not in self.out and text not in self.err:
            assert self._read(deadline - time.monotonic()), f"{text!r} never came:\n{self.out}\n{self.err}"

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def ended(self, seconds: float) -> bool:
        """Whether it has ended within this time; its output is read meanwhile."""
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            pass
        with contextlib.suppress(subprocess.TimeoutExpired):  # it closes its output a moment before it is gone
            self._process.wait(max(0.0, deadline - time.monotonic()))
        return self._process.returncode is not None

    def end(self, seconds: float = 40.0) -> int:
        """Read to the end of its output and return its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            pass
        assert not self._selector.get_map(), f"still running after {seconds} s:\n{self.out}\n{self.err}"
        return self._process.wait(max(1.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Make sure that it is gone. `stopped` is then the exit code of one that was still running."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self.end(40.0)
            except AssertionError:
                self._process.kill()
            self.stopped = self._process.wait()
        self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        self._selector.close()

    def _read(self, seconds: float) -> bool:
        """Read what comes next; False at the end of all output, or of the time."""
        if not self._selector.get_map():  # None once it is closed
            return False
        ready = self._selector.select(max(0.0, seconds))
        for key, _ in ready:
            data = os.read(key.fd, 65536)
            if not data:
                self._selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
            setattr(self, key.data, getattr(self, key.data) + data.decode(errors="replace"))
        return bool(ready)


@dataclass
class World:
    """A running `conveyor up`, and the command line that talks to it."""

    folder: Path
    backend: str = "native"
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    processes: list[Process] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    runs: set[str] = field(default_factory=set)

    @property
    def native_root(self) -> Path:
        """Where native sandboxes are."""
        return self.folder / "native"

    def environment(self, **extra: str) -> dict[str, str]:
        """What its commands and drivers run with."""
        given = {MARK: self.mark, "CONVEYOR_NATIVE_ROOT": str(self.native_root), "CONVEYOR_BACKEND": self.backend}
        if self.addresses:
            given |= {"CONVEYOR_API_URL": self.addresses["api"], "CONVEYOR_TOKEN": self.addresses["token"]}
        return clean_environment(**given, **extra)

    def up(self, *arguments: str, **extra: str) -> Process:
        """Start `conveyor up` and wait until it is ready."""
        ready = self.folder / "ready.json"
        options = ["--data", str(self.folder / "data"), "--api-port", "0", "--ready-file", str(ready), "--sync", "2m"]
        process = self.start("up", *options, *arguments, **extra)
        process.until("ready: ", 60.0)
        self.addresses = json.loads(ready.read_text())
        return process

    def start(self, *arguments: str, **extra: str) -> Process:
        """Start a command that stays."""
        process = Process(arguments, self.environment(**extra), self.folder)
        self.processes.append(process)
        return process

    def driver(self, *arguments: str) -> Process:
        """Start a driver process and wait until it is registered."""
        before = self._instances()
        process = self.start(*arguments, "--allow-file-repositories", CONVEYOR_NATS_URL=self.addresses["nats"])
        eventually(lambda: self._instances() > before, 30.0, f"{arguments} registers:\n{process.err}")
        return process

    def _instances(self) -> int:
        return sum(len(it["instances"]) for it in self.get("/drivers")["items"])

    def run(
        self, *arguments: str, stdin: str | None = None, seconds: float = 60.0, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*CONVEYOR, *arguments],
            env=self.environment(**extra),
            cwd=self.folder,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def ok(self, *arguments: str, stdin: str | None = None, **extra: str) -> str:
        """The output of a command that must succeed."""
        done = self.run(*arguments, stdin=stdin, seconds=60.0, **extra)
        assert done.returncode == 0, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """The output of a command as data."""
        return json.loads(self.ok(*arguments, "-o", "json"))

    def file(self, name: str, content: str | dict[str, Any] | list[Any]) -> str:
        """A file in the commands' directory; its name."""
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
        return name

    def request(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        """A request to the API, by hand."""
        with httpx2.Client(base_url=self.addresses["api"], trust_env=False, timeout=30.0) as client:
            return client.request(method, path, json=body)

    def get(self, path: str) -> Any:
        """What the API answers."""
        response = self.request("GET", path)
        assert response.is_success, response.text
        return response.json()

    def ended(self, run_id: str, seconds: float = 40.0) -> Any:
        """A run, once it is terminal."""
        return eventually(lambda: run if (run := self.get(f"/runs/{run_id}"))["finished_at"] else None, seconds, run_id)

    def builds_left(self) -> list[str]:
        """Sandboxes and processes of builds on the native backend."""
        folders = [it.name for it in self.native_root.glob("cv-*")] if self.native_root.exists() else []
        return folders + [who for pid, who in _processes() if _works_in(pid, self.native_root)]

    def close(self) -> None:
        """End everything, newest first."""
        with contextlib.suppress(httpx2.HTTPError, KeyError, AssertionError):  # nothing answers any more
            self.runs |= {it["run_id"] for it in self.get("/runs?limit=500")["items"]}
        for process in reversed(self.processes):
            process.close()

    def check_ended(self) -> None:
        """After `close`: what served until then ended in order, and 5 s later nothing is left."""
        for process in self.processes:
            if process.stopped is not None and process.arguments[0] not in TOOLS:
                assert process.stopped == 0, f"{process.arguments}: exit code {process.stopped}\n{process.err}"
            assert "Traceback" not in process.err, process.err
        eventually(lambda: not self.left(), 5.0, f"all processes are gone: {self.left()}")

    def left(self) -> list[str]:
        """Processes that bear our mark or work in our folder, and those of our runs wherever they are."""
        return [who for pid, who in _processes() if self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            ours = [f"{MARK}={self.mark}", *(f"CONVEYOR_RUN_ID={run_id}" for run_id in self.runs)]
            if any(entry.encode() in environment for entry in ours):
                return True
        return _works_in(pid, self.folder)


def _processes() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if entry.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z":
                command = entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                yield int(entry.name), f"{entry.name} {command[:120]}"


def _works_in(pid: int, folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(folder)
    return False


def build(repository: str, *commands: str, name: str = "build", **spec: Any) -> dict[str, Any]:
    """A ci-build resource."""
    return {
        "resource": "ci-build",
        "name": name,
        "spec": {"repository": repository, "commands": list(commands), **spec},
    }


INTERRUPT = signal.SIGINT
