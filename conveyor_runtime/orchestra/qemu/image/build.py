"""Makes the small guest image: a directory with a kernel, a first file system and an empty disk.

    <directory>/{vmlinux,initrd,disk.qcow2,image.json}     the image
    <directory>/packages/                                  the Debian packages it was made from

It is made beside its place and renamed, so that a directory with an `image.json` is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from conveyor_runtime.errors import BackendError, ConfigError
from conveyor_runtime.orchestra.qemu.image import packages
from conveyor_runtime.orchestra.qemu.image.kernel import bootable
from conveyor_runtime.orchestra.qemu.image.packages import Say
from conveyor_runtime.orchestra.qemu.image.rootfs import assemble

__all__ = ["DISK_BYTES", "build"]

DISK_BYTES = 64 * 1024**3
"""Size of the disk that workspaces are on. It takes up on the host what is written to it."""

_TOOLS = {"qemu-img": "qemu-utils", "mke2fs": "e2fsprogs"}


def build(directory: Path, say: Say) -> bool:
    """Make the image, unless it is there and made from today's packages by this very code; False if it was.

    Takes some 15 s and 75 MB of download the first time. Raises `ConfigError` when a tool is missing, and
    `BackendUnavailable` when the Debian archive does not answer.
    """
    for tool, package in _TOOLS.items():
        if shutil.which(tool, path=_path()) is None:
            raise ConfigError(f"there is no {tool} here; apt-get install {package}")
    packages.check_tools()
    kernel = packages.current_kernel()
    names = [kernel, "qemu-guest-agent", *packages.libraries_of("qemu-guest-agent")]
    names = sorted({*names, "busybox-static", "util-linux", "libcap-ng0"})
    found = packages.candidates(names)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(directory, kernel, names, found, say)


def _build(directory: Path, kernel: str, names: list[str], found: list[packages.Package], say: Say) -> bool:
    key = _key(found)
    if _key_of(directory) == key:
        say(f"{directory} is up to date ({kernel})")
        return False
    store = directory / "packages"
    store.mkdir(exist_ok=True)
    files = packages.fetch(found, names, store, say)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=directory) as draft:
        _make(Path(draft), files, say)
        _write_manifest(Path(draft) / "image.json", key, kernel)
        (directory / "image.json").unlink(missing_ok=True)  # from here to the last rename it is no image
        for name in ("vmlinux", "initrd", "disk.qcow2", "image.json"):
            (Path(draft) / name).rename(directory / name)
    for old in store.iterdir():
        if old not in files:
            old.unlink()
    say(f"made {directory} ({kernel})")
    return True


def _make(draft: Path, files: list[Path], say: Say) -> None:
    root = draft / "root"
    say("unpacking")
    packages.unpack(files, root)
    say("extracting the kernel")
    images = sorted((root / "boot").glob("vmlinuz-*"))
    if not images:
        raise BackendError("the kernel package has no vmlinuz")
    (draft / "vmlinux").write_bytes(bootable(images[-1].read_bytes()))
    say("assembling the first file system")
    (draft / "initrd").write_bytes(assemble(root))
    shutil.rmtree(root)
    say("formatting the disk")
    raw = draft / "disk.raw"
    with raw.open("wb") as file:
        file.truncate(DISK_BYTES)
    # Nothing is written that the kernel can write later: the image stays small. No journal: it is thrown away.
    features = ["-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard", "-m", "0"]
    _run(["mke2fs", "-q", "-F", "-t", "ext4", "-L", "conveyor", *features, str(raw)])
    _run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(draft / "disk.qcow2")])
    raw.unlink()


def _key(found: list[packages.Package]) -> str:
    """What the image's content follows from: the packages and this code."""
    digest = hashlib.sha256()
    for package in found:
        digest.update(f"{package.file} {package.digest}\n".encode())
    for file in sorted(resources.files(__package__).iterdir(), key=lambda it: it.name):
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _key_of(directory: Path) -> str:
    try:
        return str(json.loads((directory / "image.json").read_text())["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _write_manifest(file: Path, key: str, kernel: str) -> None:
    file.write_text(json.dumps({"key": key, "kernel": kernel}, indent=2) + "\n")


def _run(command: list[str]) -> None:
    env = {**os.environ, "PATH": _path()}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        raise BackendError(f"{command[0]} failed: {done.stderr.strip()}")


def _path() -> str:
    """Where mke2fs is, which a user's PATH often leaves out."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
