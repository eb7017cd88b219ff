"""Parts of the qemu backend that need no machine."""

from __future__ import annotations

import asyncio
import base64
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conveyor_runtime.errors import BackendError, TerminalError
from conveyor_runtime.orchestra import HostMount, Limits, Task
from conveyor_runtime.orchestra.qemu.agent import Agent, AgentError
from conveyor_runtime.orchestra.qemu.images import Image
from conveyor_runtime.orchestra.qemu.layout import VmMeta
from conveyor_runtime.orchestra.qemu.machine import Export, Machine
from conveyor_runtime.orchestra.qemu.machines import check_fits
from conveyor_runtime.orchestra.qemu.port import Port, make_pipes
from conveyor_runtime.orchestra.qemu.sockets import locked

IMAGE = Image("small", "digest", Path("/i/disk"), "qcow2", Path("/i/vmlinux"), Path("/i/initrd"))


PLAIN = Machine(
    image=IMAGE,
    accelerator=("tcg", "max"),
    version="7",
    memory_mib=512,
    cpus=1,
    network=False,
    share_model="mapped-xattr",
)


def machine(**options: Any) -> Machine:
    return replace(PLAIN, **options)


def test_key_is_of_everything_that_must_be_the_same() -> None:
    keys = {
        machine().key,
        machine(version="8").key,
        machine(memory_mib=768).key,
        machine(network=True).key,
        machine(exports=1).key,
        machine(accelerator=("kvm", "host")).key,
        machine(image=Image("small", "other", Path("/i/disk"), "qcow2", Path("/i/vmlinux"), Path("/i/initrd"))).key,
    }
    assert len(keys) == 7
    assert machine().key == machine().key


def test_paths_cannot_become_options() -> None:
    words = machine().arguments(Path("/a,readonly=on"), memory=None, exports=(Export("host0", "/x,y", read_only=True),))
    assert "local,id=host0,path=/x,,y,security_model=none,readonly=on,multidevs=remap" in words
    assert any("file=/a,,readonly=on/disk.qcow2," in word for word in words)
    assert not any(word.startswith("user,") for word in words)


def test_later_tasks_fit_or_are_refused() -> None:
    meta = VmMeta("boot", IMAGE.digest, network=False, memory_mib=512, exports=[["host0", "/data", True]])
    check_fits(Task("a", limits=Limits(memory_bytes=256 << 20), network="none"), IMAGE, meta)
    check_fits(Task("a", host_mounts=(HostMount("/data", "/d"),)), IMAGE, meta)
    for task in (
        Task("a", network="user"),
        Task("a", limits=Limits(memory_bytes=512 << 20)),
        Task("a", host_mounts=(HostMount("/data", "/d", read_only=False),)),
        Task("a", host_mounts=(HostMount("/other", "/d"),)),
    ):
        with pytest.raises(TerminalError):
            check_fits(task, IMAGE, meta)


class FakeAgent:
    """The guest's end of the pipes: answers each request by what it is told to."""

    def __init__(self, directory: Path) -> None:
        make_pipes(directory, "agent")
        self._in = os.open(directory / "agent.in", os.O_RDWR | os.O_NONBLOCK)
        self.out = os.open(directory / "agent.out", os.O_RDWR | os.O_NONBLOCK)
        self.received = b""

    async def requests(self, count: int) -> bytes:
        async with asyncio.timeout(5):
            while self.received.count(b"\n") < count:
                try:
                    self.received += os.read(self._in, 65536)
                except BlockingIOError:
                    await asyncio.sleep(0.001)
        return self.received

    def close(self) -> None:
        os.close(self._in)
        os.close(self.out)


async def test_what_another_caller_left_is_dropped(tmp_path: Path) -> None:
    guest = FakeAgent(tmp_path)
    os.write(guest.out, b'{"return": {"pid": 1}}\n\xff{"return": 12}\n')
    asking = asyncio.create_task(Agent(tmp_path).call("guest-exec", {"path": "x"}))
    said = await guest.requests(1)
    assert said.startswith(b"\xff")
    mark = said.rpartition(b'"id": ')[2].split(b"}")[0]
    os.write(guest.out, b'\xff{"return": ' + mark + b"}\n")
    await guest.requests(2)
    os.write(guest.out, b'{"return": {"pid": 7}}\n')
    assert await asking == {"pid": 7}
    guest.close()


async def test_errors_silence_and_absence_are_told_apart(tmp_path: Path) -> None:
    guest = FakeAgent(tmp_path)
    asking = asyncio.create_task(Agent(tmp_path).call("guest-exec"))
    mark = (await guest.requests(1)).rpartition(b'"id": ')[2].split(b"}")[0]
    os.write(guest.out, b'\xff{"return": ' + mark + b'}\n{"error": {"desc": "no such thing"}}\n')
    with pytest.raises(AgentError, match="no such thing"):
        await asking
    with pytest.raises(BackendError, match=r"within 0\.05 s"):
        await Agent(tmp_path).call("guest-ping", timeout=0.05)
    guest.close()
    with pytest.raises(BackendError, match="cannot be reached"):
        await Agent(tmp_path).call("guest-ping")


async def test_answers_of_any_size_and_requests_larger_than_the_pipe(tmp_path: Path) -> None:
    guest = FakeAgent(tmp_path)
    port = Port(tmp_path, "agent")
    large = base64.b64encode(os.urandom(300_000)) + b"\n"
    writing = asyncio.create_task(port.write(large))
    assert await guest.requests(1) == large
    await writing

    async def reply() -> None:
        left = large
        while left:
            try:
                left = left[os.write(guest.out, left) :]
            except BlockingIOError:
                await asyncio.sleep(0.001)

    replying = asyncio.create_task(reply())
    assert await port.read_line() == large
    await replying
    port.close()
    guest.close()


async def test_a_lock_is_one_at_a_time_and_survives_its_file(tmp_path: Path) -> None:
    inside, most = 0, 0

    async def hold(remove: bool) -> None:
        nonlocal inside, most
        async with locked(tmp_path / "ns/lock"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.005)
            if remove:
                (tmp_path / "ns/lock").unlink()
            inside -= 1

    await asyncio.gather(*(hold(number % 3 == 0) for number in range(12)))
    assert most == 1
