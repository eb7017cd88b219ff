"""Whether the processor's own virtualisation really works here.

That `/dev/kvm` opens proves nothing: nested in some hypervisors it crawls, a hundred times slower than emulation, or
dies on instructions that any kernel uses, and qemu's `accel=kvm:tcg` falls back only where it cannot be opened. So a
boot sector that counts to twenty million is run, and the clock is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

__all__ = ["EMULATION", "Accelerator", "probe"]

_TURNS = 20_000_000
_LIMIT = 2.0  # seconds; where it works it takes a tenth
_DONE = 3  # isa-debug-exit makes (value << 1) | 1 of what is written to it

# 16-bit code: out 0xe9,'K'; ecx = turns; loop: dec ecx, jnz; out 0xe9,'!'; out 0xf4,1; hlt for ever.
_CODE = (
    b"\xb0K\xba\xe9\x00\xee"
    b"\x66\xb9" + _TURNS.to_bytes(4, "little") + b"\x66\x49\x75\xfc"
    b"\xb0!\xee\xba\xf4\x00\xb0\x01\xee\xf4\xeb\xfd"
)

Accelerator = tuple[str, str]
"""Words for `-accel` and `-cpu`."""

# What is off costs an emulated processor much at each copy, fault and change of tasks, and programs do not need it.
EMULATION: Accelerator = ("tcg", "max,la57=off,erms=off,smap=off,smep=off,mpx=off,pku=off")
_CANDIDATES: tuple[Accelerator, ...] = (("kvm", "host"), ("kvm", "host,-arch-capabilities"))


async def probe(binary: str, version: str, cache: Path) -> Accelerator:
    """The fastest accelerator that works. Asked once per boot of the machine and version of qemu; `cache` is a
    directory for the answer."""
    answer = cache / f"accelerator-{_key(version)}.json"
    with contextlib.suppress(OSError, ValueError):
        accel, cpu = json.loads(answer.read_text())
        return str(accel), str(cpu)
    found = EMULATION
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        for candidate in _CANDIDATES:
            begun = time.monotonic()
            if await works(binary, candidate):
                found = candidate
                break
            if time.monotonic() - begun >= _LIMIT:
                break  # it crawls, and will by another name
    _write(answer, found)
    return found


async def works(binary: str, accelerator: Accelerator, limit: float = _LIMIT) -> bool:
    """Whether a guest runs with it, and at a useful speed: its end within `limit` seconds."""
    accel, cpu = accelerator
    with tempfile.NamedTemporaryFile(prefix="conveyor-probe-") as image:
        image.write(_CODE.ljust(510, b"\0") + b"\x55\xaa")
        image.flush()
        command = [binary, "-machine", f"pc,accel={accel}", "-cpu", cpu, "-m", "16", "-display", "none", "-nodefaults"]
        command += ["-no-user-config", "-no-reboot", "-debugcon", "stdio"]
        command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        command += ["-drive", f"file={image.name},format=raw,if=ide,snapshot=on"]
        pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        guest = await asyncio.create_subprocess_exec(*command, stdin=nothing, stdout=pipe, stderr=nothing)
        try:
            async with asyncio.timeout(limit):
                out, _ = await guest.communicate()
        except TimeoutError:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                guest.kill()
            await guest.wait()
        return guest.returncode == _DONE and out == b"K!"


def _key(version: str) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    return hashlib.sha256(f"{boot} {version} {EMULATION} {_CANDIDATES}".encode()).hexdigest()[:16]


def _write(answer: Path, found: Accelerator) -> None:
    answer.parent.mkdir(parents=True, exist_ok=True)
    draft = answer.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(found))
    draft.rename(answer)
