"""A Docker engine for tests, found as the product finds it, and an image that needs no registry.

Without an engine the tests that ask for one skip, or fail when CONVEYOR_REQUIRE names docker.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.support.required import missing

IMAGE = "conveyor-test/busybox"
_CHANGES = ["EXPOSE 8081/tcp", 'CMD ["echo", "own"]']  # what conveyor_runtime.testing asks of an image

docker_module: Any = docker


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[Any]:
    """A low-level client of the engine that DOCKER_HOST or the default socket leads to."""
    try:
        api = docker_module.APIClient(version="auto", timeout=10, **docker_module.utils.kwargs_from_env())
    except Exception as error:
        missing("docker", str(error))
    api.timeout = 120
    yield api
    api.close()


@pytest.fixture(scope="session")
def busybox(docker_engine: Any) -> str:
    """The name of an image with a shell and the usual small commands."""
    if shutil.which("busybox") is None:
        missing("docker", "its test image needs busybox-static")
    return ensure_busybox(docker_engine)


def ensure_busybox(docker_engine: Any) -> str:
    """Have that image there; its name."""
    binary = shutil.which("busybox")
    assert binary is not None
    root = _root(Path(binary))
    # Named after its content: made once per engine, and never one of an older version of this file.
    name, tag = IMAGE, hashlib.sha256(root + repr(_CHANGES).encode()).hexdigest()[:12]
    try:
        docker_engine.inspect_image(f"{name}:{tag}")
    except docker_module.errors.ImageNotFound:
        docker_engine.import_image_from_data(root, name, tag, changes=_CHANGES)
    return f"{name}:{tag}"


def _root(binary: Path) -> bytes:
    applets = subprocess.run([str(binary), "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777)):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, mode
            archive.addfile(directory)
        program = tarfile.TarInfo("bin/busybox")
        program.mode, program.size = 0o755, binary.stat().st_size
        archive.addfile(program, io.BytesIO(binary.read_bytes()))
        for applet in sorted(set(applets) - {"busybox"}):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
        users = b"root:x:0:0::/:/bin/sh\nbuilder:x:1000:1000::/tmp:/bin/sh\n"
        passwd = tarfile.TarInfo("etc/passwd")
        passwd.size = len(users)
        archive.addfile(passwd, io.BytesIO(users))
    return buffer.getvalue()
