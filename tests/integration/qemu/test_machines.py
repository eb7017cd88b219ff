"""What only machines can show: their end, their freshness, their walls."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from conveyor_runtime.errors import Gone, ImageNotFound, TerminalError
from conveyor_runtime.orchestra import HostMount, Limits, Sandbox
from conveyor_runtime.orchestra.qemu import QemuBackend, accel, process, vm
from conveyor_runtime.testing import Place, Said, run
from tests.support.qemu import QemuPlace

pytestmark = pytest.mark.qemu


@pytest.fixture
async def backend(qemu_place: QemuPlace) -> QemuBackend:
    assert isinstance(qemu_place.backend, QemuBackend)
    return qemu_place.backend


async def start(place: Place, run_id: str = "run", **options: object) -> Sandbox:
    return await place.sandboxes().start_sandbox(place.ns(run_id), place.task(**options), place.owner(run_id))


def pid_of(backend: QemuBackend, ns: str) -> int:
    return int((backend._layout.vm(ns) / "pid").read_text())


async def test_the_end_of_qemu_is_noticed_at_once(place: Place, backend: QemuBackend) -> None:
    sandbox = await start(place, "mortal")
    said = Said()
    running = asyncio.create_task(run(sandbox, "echo up; sleep 1000", said=said))
    await said.until(b"up")
    os.kill(pid_of(backend, place.ns("mortal")), signal.SIGKILL)
    killed = time.monotonic()
    with pytest.raises(Gone):
        await running
    assert time.monotonic() - killed < 2
    with pytest.raises(Gone):
        await backend.get_sandbox(place.ns("mortal"), "sandbox")
    fresh = await start(place, "mortal")
    assert (await run(fresh, "true"))[0].status == "success"


async def test_a_panic_is_told(place: Place) -> None:
    sandbox = await start(place, "panic")
    with pytest.raises(Gone, match="panic"):
        await run(sandbox, "echo c > /proc/sysrq-trigger; sleep 1000")


async def test_machines_from_one_frozen_are_fresh_and_leave_it_alone(place: Place, backend: QemuBackend) -> None:
    machine = await backend._fleet._machines.describe(place.task())
    frozen = backend._fleet._templates.find(machine)
    assert frozen is not None
    before = {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in frozen.iterdir()}
    seen = set()
    for run_id in ("one", "two"):
        sandbox = await start(place, run_id)
        _, said = await run(sandbox, "head -c 16 /dev/urandom | xxd -p; date +%s; echo mine > file; ls; sync")
        random, now, *names = said.stdout.decode().split()
        seen.add(random)
        assert abs(int(now) - time.time()) < 3
        assert names == ["file"]
    assert len(seen) == 2
    after = {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in frozen.iterdir()}
    assert {name: it for name, it in after.items() if name != "frozen"} == {
        name: it for name, it in before.items() if name != "frozen"
    }


async def test_a_guest_has_no_network_unless_asked(place: Place) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"hello\n")

    threading.Thread(target=answer, daemon=True).start()
    alone = await start(place, network="none")
    assert (await run(alone, "ls /sys/class/net"))[1].stdout == b"lo\n"
    online = await start(place, "online", network="user")
    status, said = await run(online, f"nc -w 5 10.0.2.2 {port} < /dev/null", timeout=20)
    listener.close()
    assert (status.status, said.stdout) == ("success", b"hello\n")
    with pytest.raises(TerminalError, match="network"):
        await start(place, id="second", network="user")


async def test_host_directories_are_mounted_as_asked(place: Place, tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / "host" / name).mkdir(parents=True)
    (tmp_path / "host/in/file").write_text("from the host")
    mounts = (
        HostMount(str(tmp_path / "host/in"), "/mnt/in"),
        HostMount(str(tmp_path / "host/out"), "/mnt/out", read_only=False),
    )
    sandbox = await start(place, "mounts", host_mounts=mounts)
    # Root of the guest can say it may write; qemu says no.
    script = "cat /mnt/in/file; echo made > /mnt/out/made; mount -o remount,rw /mnt/in; ! echo x > /mnt/in/file"
    status, said = await run(sandbox, script)
    assert (status.status, said.stdout) == ("success", b"from the host"), said.stderr
    assert (tmp_path / "host/out/made").read_text() == "made\n"
    assert (tmp_path / "host/in/file").read_text() == "from the host"
    with pytest.raises(TerminalError, match="not among those"):
        await start(place, "other", host_mounts=(HostMount("/etc", "/mnt/in"),))


async def test_a_machine_is_as_large_as_its_first_limit_and_no_larger(place: Place) -> None:
    await start(place)
    with pytest.raises(TerminalError, match="MiB"):
        await start(place, id="second", limits=Limits(memory_bytes=4 << 30))


async def test_what_a_killed_start_left_is_ended(place: Place, backend: QemuBackend) -> None:
    ns = place.ns("half")
    await start(place, "half")
    stray = pid_of(backend, ns)
    home = backend._layout.home(ns)
    for file in (home / "vm.json", home / "tasks/sandbox.json", home / "vm/pid"):
        file.unlink()
    await start(place, "half")
    assert pid_of(backend, ns) != stray
    assert not Path(f"/proc/{stray}/cmdline").exists() or not Path(f"/proc/{stray}/cmdline").read_bytes()


async def test_images_that_cannot_be(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = place.sandboxes()

    async def progress(_: str) -> None: ...

    for image in ("debian:stable", str(tmp_path / "nowhere.qcow2")):
        with pytest.raises(ImageNotFound):
            await backend.prepare(place.task(image=image), progress)
    monkeypatch.setattr(vm, "_BOOT", {"tcg": 1.0, "kvm": 1.0})
    empty = tmp_path / "empty.raw"
    empty.write_bytes(bytes(1 << 20))
    with pytest.raises(TerminalError, match="install qemu-guest-agent"):
        await backend.prepare(place.task(image=str(empty)), progress)
    assert empty.read_bytes() == bytes(1 << 20)


async def test_the_accelerator_is_found_by_trying(tmp_path: Path) -> None:
    assert await accel.works(vm.BINARY, accel.EMULATION, limit=20)
    assert not await accel.works(vm.BINARY, accel.EMULATION, limit=0.01)
    assert not await accel.works(vm.BINARY, ("none-such", "max"))
    version = process.version_of(vm.BINARY)
    found = await accel.probe(vm.BINARY, version, tmp_path)
    assert await accel.probe("no program of this name", version, tmp_path) == found


async def test_a_frozen_machine_that_cannot_be_taken_up_is_booted_instead(
    place: Place, backend: QemuBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = backend._fleet._templates.find(await backend._fleet._machines.describe(place.task()))
    assert frozen is not None
    for name in ("memory", "overlay.qcow2"):
        (tmp_path / name).symlink_to(frozen / name)
    state = (frozen / "state").read_bytes()
    (tmp_path / "state").write_bytes(state[: len(state) // 2])
    monkeypatch.setattr(backend._fleet._templates, "find", lambda _: tmp_path)
    sandbox = await start(place, "cold")
    status, said = await run(sandbox, "df -m . | tail -1; echo ok")
    assert status.status == "success"
    assert said.stdout.startswith(b"/dev/vda")
