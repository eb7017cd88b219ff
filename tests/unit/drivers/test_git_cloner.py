"""git-cloner against real repositories: files, git's own protocol, and HTTP with a password."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import socket
import subprocess
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from conveyor_runtime.errors import BackendError, RetryableError, TerminalError
from drivers.git import environment
from drivers.repositories import parse_repository
from drivers.sandboxes import checkout_namespace
from tests.contract.conftest import until
from tests.unit.drivers.conftest import Run, git

USER, PASSWORD = "builder", "s3cr3t/word"


async def built(run: Run, *commands: str) -> list[str]:
    """What commands print in the workspace."""
    before = len(run.log.lines)
    await run.step("builder", commands=list(commands))
    return [line for stream, line in run.log.lines[before:] if stream == "stdout"]


@pytest.mark.parametrize(
    ("ref", "branch", "content"),
    [
        (None, "main", "3"),
        ("main", "main", "3"),
        ("side/way", "side/way", "1"),
        ("v2", "v2", "2"),
        ("refs/tags/v2", "v2", "2"),
    ],
)
async def test_branches_and_tags(started: Run, repository: Path, ref: str | None, branch: str, content: str) -> None:
    result = await started.step("git-cloner", repository=f"file://{repository}", ref=ref)
    commit = git(repository, "rev-parse", f"{ref or 'main'}^{{commit}}")
    assert result.data == {"commit": commit, "ref": branch, "repository": f"file://{repository}"}
    assert await built(started, "cat file", "./run.sh") == [content, "built"]
    left = [info.ns for info in await started.orchestra.host.namespaces(started.installation)]
    assert not any("_git" in ns for ns in left)


async def test_shallow_by_default_and_deep_on_request(started: Run, repository: Path, tmp_path: Path) -> None:
    given: list[tuple[dict[str, Any], int]] = [({}, 1), ({"depth": 2}, 2), ({"depth": 0}, 3)]
    for attempt, (options, commits) in enumerate(given, 1):
        await started.step("git-cloner", repository=f"file://{repository}", attempt=attempt, **options)
        clone = await _brought_out(started, tmp_path / f"clone{attempt}")
        assert git(clone, "rev-list", "--count", "HEAD") == str(commits)
        assert git(clone, "status", "--porcelain") == ""
        assert git(clone, "rev-parse", "--abbrev-ref", "HEAD") == "main"


async def test_commits_whole_short_and_not_at_a_tip(started: Run, repository: Path) -> None:
    for spec in ("main~1", "main~2", "side/way"):
        commit = git(repository, "rev-parse", spec)
        for ref in (commit, commit[:8]):
            result = await started.step("git-cloner", repository=f"file://{repository}", ref=ref)
            assert result.data["commit"] == commit


async def test_what_a_clone_leaves_out_is_replaced(started: Run, repository: Path) -> None:
    await started.step("git-cloner", repository=f"file://{repository}", ref="side/way")
    assert await built(started, "touch old", "ls") == ["file", "old", "run.sh", "side"]
    await started.step("git-cloner", repository=f"file://{repository}", attempt=2)
    assert await built(started, "ls") == ["file", "run.sh"]


@pytest.mark.parametrize("ref", ["nowhere", "v3", "a" * 40, "abcdef1", "refs/heads/none"])
async def test_a_ref_that_does_not_exist_is_final(started: Run, repository: Path, ref: str) -> None:
    with pytest.raises(TerminalError):
        await started.step("git-cloner", repository=f"file://{repository}", ref=ref)


async def test_repositories_that_do_not_exist_or_are_empty_are_final(started: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "-q")
    for name in ("none", "empty"):
        with pytest.raises(TerminalError):
            await started.step("git-cloner", repository=f"file://{tmp_path}/{name}")


async def test_files_only_where_the_operator_allows_them(run: Run, repository: Path) -> None:
    await run.step("container-start")
    strict = run.with_settings(allow_file_repositories=False)
    for address in (f"file://{repository}", str(repository)):
        with pytest.raises(TerminalError, match="not allowed"):
            await strict.step("git-cloner", repository=address)


async def test_a_network_that_fails_may_work_later(started: Run) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for scheme in ("http", "git"):
        with pytest.raises(RetryableError):
            await started.step("git-cloner", repository=f"{scheme}://127.0.0.1:{port}/r.git")


async def test_submodules_on_request_by_the_same_rules(run: Run, repository: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "-q", "-b", "main")
    git(outer, "submodule", "--quiet", "add", f"file://{repository}", "inner")
    git(outer, "commit", "-q", "-m", "with a submodule")
    await run.step("container-start")
    await run.step("git-cloner", repository=f"file://{outer}")
    assert await built(run, "ls inner") == []
    await run.step("git-cloner", repository=f"file://{outer}", submodules=True, attempt=2)
    assert await built(run, "cat inner/file") == ["3"]
    git(outer, "config", "-f", ".gitmodules", "submodule.inner.url", "ext::sh -c touch% /tmp/never")
    git(outer, "commit", "-q", "-a", "-m", "a hostile submodule")
    with pytest.raises(TerminalError):
        await run.step("git-cloner", repository=f"file://{outer}", submodules=True, attempt=3)


async def test_no_hook_of_a_template_or_of_the_machine_runs(
    started: Run, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = tmp_path / "templates/hooks"
    hooks.mkdir(parents=True)
    for name in ("post-checkout", "reference-transaction"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (hooks / name).chmod(0o755)
    (tmp_path / "config").write_text(f"[init]\ntemplateDir={tmp_path}/templates\n[core]\nhooksPath={hooks}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(tmp_path / "templates"))
    await started.step("git-cloner", repository=f"file://{repository}")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
async def daemon(repository: Path) -> AsyncIterator[str]:
    """`git daemon` with that repository; it does not give out commits by id unless they are at a tip."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["git", "daemon", "--export-all", f"--base-path={repository.parent}", "--listen=127.0.0.1"]
    process = await asyncio.create_subprocess_exec(*command, f"--port={port}", "--reuseaddr", start_new_session=True)
    await until(lambda: _listens(port))
    yield f"git://127.0.0.1:{port}"
    os.killpg(process.pid, 15)
    await process.wait()


async def test_by_gits_own_protocol(started: Run, repository: Path, daemon: str) -> None:
    result = await started.step("git-cloner", repository=f"{daemon}/repo.git", ref="side/way")
    assert result.data["commit"] == git(repository, "rev-parse", "side/way")
    commit = git(repository, "rev-parse", "main~1")
    assert (await started.step("git-cloner", repository=f"{daemon}/repo.git", ref=commit)).data["commit"] == commit
    with pytest.raises(TerminalError):
        await started.step("git-cloner", repository=f"{daemon}/none.git")


@pytest.fixture
def http(repository: Path) -> Iterator[str]:
    """The repository over HTTP, for one user. Yields host and port."""
    git(repository, "update-server-info")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _backend(repository.parent))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


async def test_a_password_works_and_is_shown_nowhere(started: Run, repository: Path, http: str) -> None:
    quoted = PASSWORD.replace("/", "%2F")
    result = await started.step("git-cloner", repository=f"http://{USER}:{quoted}@{http}/repo.git")
    assert result.data["repository"] == f"http://***@{http}/repo.git"
    await started.log.line(f"should git ever say {PASSWORD} or {quoted}")
    told = f"{result.model_dump_json()}{started.log.text}"
    remembered = await built(started, "cat .git/config .git/FETCH_HEAD; env; cat .git/HEAD")
    for text in (told, "\n".join(remembered)):
        assert PASSWORD not in text
        assert quoted not in text
    assert f"http://{http}/repo.git" in "\n".join(remembered)


@pytest.mark.parametrize("userinfo", ["", "builder:wrong-pass@", "wrong-token@"])
async def test_a_refused_password_is_final_and_shown_nowhere(started: Run, http: str, userinfo: str) -> None:
    with pytest.raises(TerminalError) as error:
        await started.step("git-cloner", repository=f"http://{userinfo}{http}/repo.git")
    for secret in ("wrong-pass", "wrong-token"):
        assert secret not in f"{error.value}{started.log.text}"


async def test_cancel_ends_git_and_leaves_nothing(started: Run) -> None:
    accepted = asyncio.Event()

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    cloning = asyncio.create_task(started.step("git-cloner", repository=f"http://127.0.0.1:{port}/r.git"))
    await asyncio.wait_for(accepted.wait(), 20)
    cloning.cancel()
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError):
            await cloning
    assert not _running(f"127.0.0.1:{port}")
    left = [info.ns for info in await started.orchestra.host.namespaces(started.installation)]
    assert not any("_git" in ns for ns in left)
    server.close()
    await server.wait_closed()


async def test_a_worker_thought_dead_leaves_its_successor_alone(started: Run) -> None:
    accepted: asyncio.Queue[None] = asyncio.Queue()

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.put_nowait(None)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/r.git"
    first = asyncio.create_task(started.step("git-cloner", repository=url))
    await asyncio.wait_for(accepted.get(), 20)
    second = asyncio.create_task(started.step("git-cloner", takeover=1, repository=url))
    await asyncio.wait_for(accepted.get(), 20)
    # The successor ended what it found; the end of the one it took over from does not touch it.
    with pytest.raises((RetryableError, BackendError)):
        await asyncio.wait_for(first, 20)
    late = asyncio.create_task(started.step("git-cloner", repository=url))
    await asyncio.wait_for(accepted.get(), 20)
    late.cancel()
    async with asyncio.timeout(20):
        await asyncio.wait([late])
    assert not second.done()
    lost = started.context("git-cloner", takeover=2)
    lost.cancelled.set()
    with pytest.raises(RetryableError):
        await started.step("git-cloner", context=lost, repository=url)
    assert not second.done()
    left = [info.ns for info in await started.orchestra.host.namespaces(started.installation)]
    assert [ns for ns in left if "_git" in ns] == [checkout_namespace(started.context("git-cloner", takeover=1))]
    # container-stop ends them all.
    await started.step("container-stop")
    with pytest.raises((RetryableError, BackendError)):
        await asyncio.wait_for(second, 20)
    assert await started.orchestra.host.namespaces(started.installation) == []
    server.close()
    await server.wait_closed()


def test_nothing_of_the_machine_reaches_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("GIT_DIR", "GIT_SSH", "GIT_PROXY_COMMAND", "GIT_EXTERNAL_DIFF", "NATS_TOKEN", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "x")
    env = environment(parse_repository("https://a.org/r", allow_files=False), tmp_path, allow_files=False)
    assert {name for name in env if env[name] == "x"} == {"HTTPS_PROXY"}
    assert env["GIT_CONFIG_NOSYSTEM"] == "1"
    assert env["GIT_TERMINAL_PROMPT"] == "0"
    assert env["GIT_ALLOW_PROTOCOL"] == "https:http:ssh:git"


async def _brought_out(run: Run, target: Path) -> Path:
    """A copy of the workspace on this machine, whose git can look into it: the image has none."""
    lines = await built(run, "tar -cf - . | base64")
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode("".join(lines)))) as archive:
        archive.extractall(target, filter="data")
    return target


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _running(word: str) -> list[str]:
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if word in line and "git" in line]


def _backend(root: Path) -> type[BaseHTTPRequestHandler]:
    wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        """The dumb protocol would do, but not for a shallow clone: this is git's own CGI program."""

        def do_GET(self) -> None:
            self._serve(b"")

        def do_POST(self) -> None:
            self._serve(self.rfile.read(int(self.headers["Content-Length"])))

        def _serve(self, body: bytes) -> None:
            if self.headers.get("Authorization") != wanted:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="git"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            path, _, query = self.path.partition("?")
            env = {
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "REMOTE_USER": USER,
            }
            done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=False)
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
            self.send_response(int(fields.pop("Status", "200 OK").split()[0]))
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Silent."""

    return Handler
