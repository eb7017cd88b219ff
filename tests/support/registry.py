"""A real image registry on loopback, with a password, and a stranger that notes what it is offered."""

from __future__ import annotations

import http.server
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.required import missing

USER, PASSWORD = "builder", "secret"
# `secret`, as htpasswd -B writes it.
_HTPASSWD = "builder:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"
_CONFIG = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: 127.0.0.1:{port}}}
auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}
"""


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def registry(folder: Path, port: int) -> Iterator[str]:
    """Debian's docker-registry with what was pushed into `folder`; yields `host:port`."""
    program = shutil.which("docker-registry")
    if program is None:
        missing("docker", "its registry tests need docker-registry")
    assert program is not None
    (folder / "htpasswd").write_text(_HTPASSWD)
    (folder / "config.yml").write_text(_CONFIG.format(folder=folder, port=port))
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        _until_up(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


class Stranger(http.server.BaseHTTPRequestHandler):
    """Wants a password of everybody, and notes what comes."""

    offered: list[str | None] = []

    def do_GET(self) -> None:
        self.offered.append(self.headers.get("Authorization"))
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="stranger"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        """Silent."""


@contextmanager
def stranger() -> Iterator[tuple[str, list[str | None]]]:
    """Another registry: `host:port`, and the credentials it was offered, None for each request without."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    Stranger.offered = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", Stranger.offered
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _until_up(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("docker-registry did not come up")
