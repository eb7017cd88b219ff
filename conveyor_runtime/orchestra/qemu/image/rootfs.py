"""The first file system of the small guest: busybox, the guest agent, setpriv, and the kernel's modules."""

from __future__ import annotations

import re
import subprocess
from importlib import resources
from pathlib import Path

from conveyor_runtime.errors import BackendError
from conveyor_runtime.orchestra.qemu.image.cpio import Archive
from conveyor_runtime.orchestra.qemu.image.kernel import modules

__all__ = ["assemble"]

_PASSWD = "root:x:0:0:root:/root:/bin/sh\nbuild:x:1000:1000::/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"  # noqa: S105
_GROUP = "root:x:0:\nbuild:x:1000:\nnogroup:x:65534:\n"
# The agent runs these two by name. The clock of the machine is the host's and needs no setting.
_SHUTDOWN = '#!/bin/sh\nsync\ncase "$*" in *-r*) exec reboot -f;; *) exec poweroff -f;; esac\n'
_HWCLOCK = "#!/bin/sh\nexit 0\n"


def assemble(root: Path) -> bytes:
    """A cpio archive, made from the files of unpacked packages below `root`."""
    archive = Archive()
    for path in ("proc", "sys", "dev", "run", "mnt", "etc", "var/lib/conveyor", "usr/bin", "usr/sbin"):
        archive.directory(path)
    archive.directory("root", 0o700)
    archive.directory("tmp", 0o1777)
    archive.directory("var/tmp", 0o1777)
    archive.device("dev/console", 5, 1)
    archive.device("dev/null", 1, 3)
    busybox = _one(root, "busybox")
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in _applets(busybox):
        if applet not in ("busybox", "setpriv", "shutdown", "hwclock"):
            archive.link(f"bin/{applet}", "busybox")
    libraries: set[Path] = set()
    for name, place in (("qemu-ga", "usr/sbin"), ("setpriv", "usr/bin")):
        program = _one(root, name)
        archive.file(f"{place}/{name}", program.read_bytes(), 0o755)
        libraries |= _libraries(root, program)
    for library in sorted(libraries):
        archive.file(
            f"lib64/{library.name}" if library.name.startswith("ld-") else f"lib/{library.name}",
            library.read_bytes(),
            0o755,
        )
    order = modules(root / "lib/modules")
    for module in order:
        archive.file(f"lib/modules/{module.name}", module.read_bytes())
    archive.file("etc/modules.order", "".join(f"{module.name}\n" for module in order).encode())
    archive.file("etc/passwd", _PASSWD.encode())
    archive.file("etc/group", _GROUP.encode())
    archive.file("sbin/shutdown", _SHUTDOWN.encode(), 0o755)
    archive.file("sbin/hwclock", _HWCLOCK.encode(), 0o755)
    init = resources.files(__package__).joinpath("init.sh").read_bytes()
    archive.file("init", init, 0o755)
    return archive.to_bytes()


def _one(root: Path, name: str) -> Path:
    for place in ("bin", "usr/bin", "sbin", "usr/sbin"):
        if (root / place / name).is_file():
            return root / place / name
    raise BackendError(f"the Debian packages have no {name}")


def _applets(busybox: Path) -> list[str]:
    done = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BackendError(f"busybox does not run here: {done.stderr.strip()}")
    return done.stdout.split()


def _libraries(root: Path, program: Path) -> set[Path]:
    """What the program loads, from among the packages only: their own loader is asked, this machine's files are not."""
    loader = next(root.glob("lib*/ld-linux*.so*"), None) or next(root.glob("lib/*/ld-linux*.so*"), None)
    if loader is None:
        raise BackendError("the Debian packages have no dynamic loader")
    places = [*root.glob("lib/*-linux-gnu"), *root.glob("usr/lib/*-linux-gnu")]
    library_path = ":".join(map(str, places))
    command = [str(loader), "--inhibit-cache", "--library-path", library_path, "--list", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = {Path(name) for name in re.findall(r"=> (\S+) \(0x", done.stdout)}
    missing = re.findall(r"(\S+) => not found", done.stdout)
    if done.returncode != 0 or missing or not all(path.is_relative_to(root) for path in found):
        raise BackendError(f"libraries of {program.name} are not in the packages: {missing or done.stderr.strip()}")
    return {*found, loader}
