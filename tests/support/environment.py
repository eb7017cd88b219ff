"""What `make test` needs around pytest: the missing Debian packages, and a Docker engine if none answers.

    python -m tests.support.environment COMMAND...

runs COMMAND and exits with its code. When no engine answers and we are root, COMMAND runs beside a private dockerd in
network and mount namespaces of its own. dockerd rewrites the firewall chains and the bridge it finds, so this is what
lets it start next to any other dockerd, and what makes its bridge, rules and mounts vanish with it. The price: COMMAND
reaches loopback and its containers, and no other host. Tests need no more.

What is missing is said and fails nothing here: the tests skip, or fail if CONVEYOR_REQUIRE names it (`required`). Only
a word there that nobody knows ends it at once, with exit code 2.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from docker.client import DockerClient

from tests.support.go import GoBuildError, build
from tests.support.required import UnknownPartError, required

START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0
INSIDE = "--inside-namespaces"
PREFIX = "conveyor-dockerd-"
UNIX_SOCKET_LIMIT = 107

engine_client: Any = DockerClient  # it carries no types


def main(arguments: Sequence[str]) -> None:
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    # Hundreds of processes are started below us; with it, each would compile all that it imports anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if not arguments:
        sys.exit(__doc__)
    if arguments[0] == INSIDE:
        sys.exit(run_beside_private_docker(arguments[1:]))
    try:
        required()
    except UnknownPartError as error:
        say(str(error))
        sys.exit(2)
    command = prepared(list(arguments))
    os.execvp(command[0], command)


def prepared(command: list[str]) -> list[str]:
    """Provide what can be provided, and return the command, wrapped if it needs a private engine."""
    answers = docker_answers()
    installed = install_missing(with_docker=not answers)
    make_guest()
    build_go_programs()
    if not answers and "docker.io" in installed:
        answers = wait_until(docker_answers, 5.0)  # the package may have started its service
    if not answers:
        obstacle = why_no_private_docker()
        if obstacle is None:
            inside = [sys.executable, "-m", "tests.support.environment", INSIDE, *command]
            return ["unshare", "--net", "--mount", "--propagation", "slave", "--", *inside]
        say(f"no Docker engine answers and none can be started here: {obstacle}")
    return command


def make_guest() -> None:
    """Make the machine that the tests boot, from Debian packages: here, where there is a network. It is kept."""
    if not (has("qemu-system-x86_64") and has("apt-get")):
        return
    build = [sys.executable, "-m", "conveyor_runtime", "image", "build", "qemu"]
    done = subprocess.run(build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        say("the guest of the qemu tests cannot be made:\n" + tail(done.stdout))


def build_go_programs() -> None:
    """Build the programs of `tests/interop`: here, where there is a network for what they need."""
    if not has("go"):
        return
    try:
        build()
    except GoBuildError as error:
        say("the Go programs of tests/interop cannot be built:\n" + tail(str(error)))


def say(text: str) -> None:
    print(f"environment: {text}", file=sys.stderr, flush=True)


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


# --- packages ---------------------------------------------------------------------------------------------------------


def install_missing(*, with_docker: bool) -> list[str]:
    """Install the Debian packages whose programs are missing, and return those that came."""
    missing = missing_packages(with_docker=with_docker)
    if not missing:
        return []
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        say(f"missing, and only root on Debian can have it installed here: {' '.join(missing)}")
        return []
    say(f"installing {' '.join(missing)}")
    output = apt_get("install", *missing)
    if output is not None and re.search("Unable to locate|no installation candidate|Failed to fetch|404", output):
        apt_get("update")  # only now: the package lists are absent or out of date
        output = apt_get("install", *missing)
    if output is not None:
        say("apt-get could not install them:\n" + tail(output))
    return [package for package in missing if package not in missing_packages(with_docker=with_docker)]


def missing_packages(*, with_docker: bool) -> list[str]:
    present = {"git": has("git"), "busybox-static": has_static_busybox(), "docker-registry": has("docker-registry")}
    if platform.machine() == "x86_64":
        present |= {
            "qemu-system-x86": has("qemu-system-x86_64"),
            "qemu-utils": has("qemu-img"),
            "e2fsprogs": has("mke2fs"),
            "syslinux": has("syslinux"),
            "mtools": has("mcopy"),
            "dosfstools": has("mkfs.vfat"),
        }
    if with_docker:
        present |= {"docker.io": has("dockerd"), "iptables": has("iptables")}
        # An engine on a kernel with AppArmor starts no container without the program that loads its profile.
        present["apparmor"] = has("apparmor_parser") or not kernel_has_apparmor()
    return [package for package, there in present.items() if not there]


def has(program: str) -> bool:
    return shutil.which(program) is not None


def has_static_busybox() -> bool:
    """Say whether busybox can be the only file of an image: one that names a dynamic loader cannot."""
    path = shutil.which("busybox")
    return path is not None and re.search(rb"/lib\S*/ld-", Path(path).read_bytes()[:4096]) is None


def kernel_has_apparmor() -> bool:
    try:
        return Path("/sys/module/apparmor/parameters/enabled").read_text().strip() == "Y"
    except OSError:
        return False


def apt_get(verb: str, *packages: str) -> str | None:
    """Run apt-get without questions; None is success, else what it printed."""
    options = ["-qq", "-o", "DPkg::Lock::Timeout=180", "-o", "Acquire::Retries=2"]
    if verb == "install":
        options += ["-y", "--no-install-recommends"]
    # RUNLEVEL=1 keeps an init script from starting a second, lasting engine where systemd does not decide.
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1", "RUNLEVEL": "1"}
    for _ in range(30):
        done = subprocess.run(
            ["apt-get", *options, verb, *packages],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return None
        if "Could not get lock" not in done.stdout:  # the lock of the lists has no timeout option
            break
        time.sleep(2.0)
    return done.stdout


# --- the engine -------------------------------------------------------------------------------------------------------


def docker_answers(url: str | None = None) -> bool:
    """Ask the engine at the URL, or at the one that DOCKER_HOST or the default names."""
    try:
        client = engine_client(url, timeout=5) if url else engine_client.from_env(timeout=5)
        with contextlib.closing(client):
            return bool(client.ping())
    except Exception:  # whatever is wrong with it, it does not answer
        return False


def why_no_private_docker() -> str | None:
    if sys.platform != "linux":
        return "this is not Linux"
    if os.geteuid() != 0:
        return "that needs root"
    absent = [program for program in ("dockerd", "unshare", "mount") if not has(program)]
    if absent:
        return f"{', '.join(absent)} not found"
    trial = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False)
    return None if trial.returncode == 0 else f"no namespaces: {trial.stderr.strip()}"


def run_beside_private_docker(command: Sequence[str]) -> int:
    stop = StopSignals()
    try:
        with private_docker(stop) as url:
            environment = dict(os.environ)
            if url is not None:
                environment["DOCKER_HOST"] = url
                for name in ("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_CONTEXT"):
                    environment.pop(name, None)
            return stop.run(command, environment)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


class StopSignals:
    """Ctrl-C and SIGTERM end the command first, then we clean up, undisturbed."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._deaf = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._deaf:
            return
        if self._child is None:
            raise KeyboardInterrupt
        if number == signal.SIGTERM:  # Ctrl-C and hang-up reach it without us, as a member of our process group
            self._child.send_signal(signal.SIGINT)  # what pytest stops on with its fixtures torn down

    def run(self, command: Sequence[str], environment: dict[str, str]) -> int:
        self._child = subprocess.Popen(command, env=environment)
        code = self._child.wait()
        self._deaf = True
        return code if code >= 0 else 128 - code

    def deafen(self) -> None:
        self._deaf = True


@contextlib.contextmanager
def private_docker(stop: StopSignals) -> Iterator[str | None]:
    """An engine for the length of the block; None, with the reason on stderr, if it does not come up."""
    remove_leftovers()
    parent = tempfile.gettempdir()
    longest_socket = f"{parent}/{PREFIX}12345678/exec/containerd/containerd.sock.ttrpc"
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent if len(longest_socket) < UNIX_SOCKET_LIMIT else "/tmp"))
    engine: subprocess.Popen[bytes] | None = None
    try:
        with (folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            prepare_namespaces()
            url = f"unix://{folder}/docker.sock"
            # Not every machine can mount an overlay here, nor does every kernel have what the firewall rules need.
            for flags in ("overlay2", "true"), ("vfs", "true"), ("overlay2", "false"), ("vfs", "false"):
                engine = start_engine(folder, lock, storage=flags[0], iptables=flags[1])
                if engine is not None:
                    break
            else:
                say("dockerd does not start:\n" + tail((folder / "log").read_text(errors="replace")))
            try:
                yield url if engine else None
            finally:
                stop.deafen()
                if engine is not None:
                    stop_engine(engine, url)
    finally:
        stop.deafen()
        unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


def prepare_namespaces() -> None:
    """Give the new namespaces what dockerd takes for granted, and hide what it would otherwise share."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        set_flags, up_and_running = 0x8914, 0x1 | 0x40  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING
        fcntl.ioctl(control, set_flags, struct.pack("16sH14x", b"lo", up_and_running))
    # A system containerd lives in other namespaces; with its socket out of sight dockerd starts its own.
    Path("/run/containerd").mkdir(parents=True, exist_ok=True)
    mount("tmpfs", "/run/containerd")
    if not re.search(r" - cgroup2? ", Path("/proc/self/mountinfo").read_text()):
        mount("cgroup2", "/sys/fs/cgroup")


def mount(kind: str, target: str) -> None:
    done = subprocess.run(["mount", "-t", kind, kind, target], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        say(f"cannot mount {kind} on {target}: {done.stderr.strip()}")


def start_engine(folder: Path, lock: IO[bytes], *, storage: str, iptables: str) -> subprocess.Popen[bytes] | None:
    (folder / "daemon.json").write_text("{}")  # the machine's own may contradict our flags
    command = ["dockerd", "--host", f"unix://{folder}/docker.sock", "--config-file", f"{folder}/daemon.json"]
    command += ["--data-root", f"{folder}/data-{storage}", "--exec-root", f"{folder}/exec"]
    command += ["--pidfile", f"{folder}/pid", "--storage-driver", storage, f"--iptables={iptables}"]
    command += ["--exec-opt", "native.cgroupdriver=cgroupfs"]  # systemd is on the other side of the namespaces
    if has("setpriv"):
        command = ["setpriv", "--pdeathsig", "TERM", *command]  # it stops by itself should we be killed
    started = time.monotonic()
    with (folder / "log").open("ab") as log:
        engine = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the tests; they still need it to clean up
            pass_fds=[lock.fileno()],  # held by all its processes: the folder is in use
        )
    try:
        wait_until(lambda: docker_answers(f"unix://{folder}/docker.sock") or engine.poll() is not None, START_TIMEOUT)
        if engine.poll() is None and docker_answers(f"unix://{folder}/docker.sock"):
            say(f"private Docker engine up in {time.monotonic() - started:.1f} s ({storage}, iptables {iptables})")
            return engine
    except BaseException:
        end(engine)
        raise
    end(engine)
    return None


def stop_engine(engine: subprocess.Popen[bytes], url: str) -> None:
    with contextlib.suppress(Exception), contextlib.closing(engine_client(url, timeout=20)) as client:
        left = client.containers.list(all=True, ignore_removed=True)
        if left:
            say("containers left by the tests: " + ", ".join(str(container.name) for container in left))
        for container in left:  # at once; on its own dockerd gives each ten seconds
            with contextlib.suppress(Exception):
                container.remove(force=True)
    end(engine)


def end(engine: subprocess.Popen[bytes]) -> None:
    engine.terminate()
    try:
        engine.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        engine.kill()
        engine.wait()


def unmount_below(folder: Path) -> None:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed([point for point in points if point.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)


def remove_leftovers() -> None:
    """Remove folders of runs that were killed: nobody holds their lock any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def tail(text: str, lines: int = 25) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
