"""Starting and ending: what `up` says, refuses and leaves, the demo, the doctor, a server that is not there."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.world import CONVEYOR, World, build, clean_environment, eventually

SHIPPED = ["builder", "container-run", "container-start", "container-stop", "git-cloner"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_ends_on_a_signal_and_leaves_nothing(own_world: World, repository: str, number: int) -> None:
    world = own_world
    up = world.up()
    ready = world.folder / "ready.json"
    assert stat.S_IMODE(ready.stat().st_mode) == 0o600
    assert set(world.addresses) == {"api", "nats", "token"}
    [line] = up.out.splitlines()
    assert line.startswith(f"ready: API {world.addresses['api']} NATS nats://")
    password = world.addresses["nats"].partition("//")[2].partition("@")[0].partition(":")[2]
    assert password
    assert password not in up.out + up.err, "credentials do not belong on the terminal"
    if number == signal.SIGINT:
        # A build is under way: it is stopped, and goes on when everything is up again.
        world.ok("apply", "-f", world.file("long.json", build(repository, "echo under way; sleep 333", name="long")))
        follower = world.start("logs", "-f", "ci-build/long")
        follower.until("[build] under way")
        up.signal(number)
        up.until("once more to hurry")
        # As a person would: one more, and one more. Two that arrive together count as one.
        while not up.ended(0.5):
            up.signal(number)
    else:
        up.signal(number)
    assert up.end() == 0
    assert "Traceback" not in up.err
    assert not ready.exists()
    for process in world.processes[1:]:
        process.close()
    eventually(lambda: not world.left(), 5.0, "no process is left")


def test_a_taken_port_is_said_at_once(own_world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for option in ("--api-port", "--nats-port"):
            other = "--nats-port" if option == "--api-port" else "--api-port"
            done = own_world.run("up", option, str(port), other, "0", "--drivers", "none")
            assert done.returncode == 2, done.stderr
            assert str(port) in done.stderr.splitlines()[-1]
            assert done.stderr.splitlines()[-1].startswith("error: ")
            assert "Traceback" not in done.stderr
    assert not own_world.left()


def test_settings_that_cannot_work(own_world: World) -> None:
    for arguments, expected in (
        (("up", "--drivers", "builder,bilder"), "no driver named bilder is installed (installed: builder, "),
        (("up", "--sync", "sometimes"), "must be `always` or a duration"),
        (("up", "--backend", "podman"), "there are auto, docker, "),
        (("up", "--api-port", "70000"), "--api-port"),
        (("--api-url", "nonsense", "get", "runs"), "must look like http://host:port"),
        (("get",), "TYPE"),
        (("gett", "runs"), "No such command 'gett'"),
        (("get", "runs", "--status", "Sleeping"), "Sleeping is no status"),
        (("delete", "run", "x"), "cannot be deleted; cancel it"),
        (("delete", "driver", "x", "--force"), "no driver cleans up after a driver"),
    ):
        done = own_world.run(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert expected in done.stderr, arguments
        assert "Traceback" not in done.stderr
    assert not own_world.left()


def test_a_backend_that_does_not_answer(own_world: World) -> None:
    absent = f"unix://{own_world.folder}/nothing.sock"
    done = own_world.run("up", "--backend", "docker", "--api-port", "0", DOCKER_HOST=absent)
    assert done.returncode == 5
    mend = "start its daemon, or use --backend auto"
    said = f"error: --backend docker: docker does not answer at {absent}: No such file or directory: {mend}\n"
    assert done.stderr == said
    assert not own_world.left()


def test_nobody_answers(own_world: World) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        file = own_world.file("x.json", build("r", "true"))
        tried = [("get", "runs"), ("logs", "-f", "x"), ("run", "-f", file, "--watch"), ("apply", "-f", file)]
        asking = [own_world.start(*arguments, "--api-url", url) for arguments in tried]
        doctor = own_world.start("doctor", "--api-url", url)
        for process in asking:
            assert process.end() == 5, process.err
            assert process.err.startswith("error: nobody answers: is `conveyor up` running? tried " + url)
        assert doctor.end() == 1
        assert "fail  api" in doctor.out


def test_a_token_is_asked_for(own_world: World) -> None:
    world = own_world
    world.up("--drivers", "none", "--token", "let-me-in")
    assert world.addresses["token"] == "let-me-in"
    assert world.ok("get", "definitions")
    refused = world.run("get", "definitions", "--token", "wrong")
    assert refused.returncode == 2
    assert "CONVEYOR_TOKEN" in refused.stderr
    assert world.run("--token", "wrong", "get", "definitions", "--token", "let-me-in").returncode == 0


def test_the_doctor_of_a_healthy_installation(world: World) -> None:
    findings = world.json("doctor")
    verdicts = {it["part"]: it["verdict"] for it in findings}
    assert verdicts["python"] == verdicts["nats-server"] == verdicts["git"] == verdicts["api"] == "ok"
    drivers = [it["found"] for it in findings if it["part"] == "driver"]
    assert drivers == [f"{name}: processes: 1" for name in SHIPPED]
    assert "ok    api" in world.ok("doctor")


def _demo(tmp_path: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CONVEYOR, "demo"],
        cwd=tmp_path,
        env=clean_environment(TMPDIR=str(tmp_path), CONVEYOR_TEST_MARK=str(tmp_path), **extra),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _check_demo(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    for step in ("start", "clone", "build", "stop"):
        assert f"\n[{step}]" in f"\n{done.stdout}"
        assert any(line.split()[:1] == [step] and "Succeeded" in line for line in done.stdout.splitlines())
    assert "source.tar.gz: OK" in done.stdout
    assert "WARNING" not in done.stderr
    assert "ERROR" not in done.stderr


def test_the_demo_without_docker(tmp_path: Path) -> None:
    done = _demo(tmp_path, DOCKER_HOST=f"unix://{tmp_path}/nothing.sock")
    _check_demo(done)
    assert "native backend" in done.stderr
    assert [it.name for it in tmp_path.iterdir() if it.name.startswith("conveyor-demo")] == []
    world = World(tmp_path, mark=str(tmp_path))
    eventually(lambda: not world.left(), 5.0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_leaves_nothing(own_world: World, number: int, code: int) -> None:
    folder = own_world.folder
    demo = own_world.start("demo", TMPDIR=str(folder), DOCKER_HOST=f"unix://{folder}/nothing.sock")
    demo.until("demo: starting")
    demo.signal(number)
    assert demo.end() == code
    assert "Traceback" not in demo.err
    assert [it.name for it in folder.iterdir() if it.name.startswith("conveyor-demo")] == []
    eventually(lambda: not own_world.left(), 5.0)


@pytest.mark.docker
def test_the_demo_in_a_container(tmp_path: Path, busybox: str) -> None:
    done = _demo(tmp_path)
    _check_demo(done)
    assert "building in a container of" in done.stderr


def _unpacked(archive: Path) -> Path:
    """This project's files as an archive brings them: without git."""
    source = Path(__file__).parents[2]
    archive.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if name.startswith(("conveyor_runtime/", "drivers/", "pipelines/")) or name == "pyproject.toml":
            target = archive / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (source / name).is_file():
                target.write_bytes((source / name).read_bytes())
    return archive


def test_the_demo_of_an_unpacked_archive(tmp_path: Path) -> None:
    archive = _unpacked(tmp_path / "unpacked")
    done = _demo(tmp_path, DOCKER_HOST=f"unix://{tmp_path}/no.sock", PYTHONPATH=str(archive))
    _check_demo(done)
    assert f"{archive} is no git checkout, so a temporary repository was made" in done.stderr


def test_a_demo_whose_build_fails_says_so_by_its_exit_code(tmp_path: Path) -> None:
    archive = _unpacked(tmp_path / "unpacked")
    (archive / "drivers/conflict.txt").write_text("<<<<<<< ours\n")
    done = _demo(tmp_path, DOCKER_HOST=f"unix://{tmp_path}/no.sock", PYTHONPATH=str(archive))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "these hold merge conflicts" in done.stdout
    assert any(line.split()[:1] == ["build"] and "Failed" in line for line in done.stdout.splitlines())
    assert any(line.split()[:1] == ["stop"] and "Succeeded" in line for line in done.stdout.splitlines())
    assert "that was all of it" not in done.stderr
    assert [it.name for it in tmp_path.iterdir() if it.name.startswith("conveyor-demo")] == []


def test_a_reader_that_has_seen_enough(world: World) -> None:
    command = f"{' '.join(CONVEYOR)} get definitions -o json | head -c 1"
    done = subprocess.run(
        ["sh", "-c", command], env=world.environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr) == ("[", "")


def test_version_and_driver_list() -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run([*CONVEYOR, *arguments], capture_output=True, text=True, check=True, env=dict(os.environ))
        return done.stdout

    assert run("--version") == run("version")
    assert [it["name"] for it in json.loads(run("driver", "list", "-o", "json"))] == SHIPPED
