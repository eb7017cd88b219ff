"""What only some backends can do, and limits that are kept."""

from __future__ import annotations

import asyncio
import re
from itertools import pairwise

import pytest

from conveyor_runtime.orchestra import Freezable, Limits, Measured, Port, Stat, Tmpfs, Ulimit
from conveyor_runtime.testing.place import Place, Said, logs, wait


async def test_running_out_of_memory_is_told(place: Place) -> None:
    status, _ = await place.ended("tail /dev/zero", limits=Limits(memory_bytes=48 << 20))
    assert (status.status, status.exit_code, status.reason) == ("killed", 137, "oom")
    status, _ = await place.ended("kill -9 $$", id="other", limits=Limits(memory_bytes=48 << 20))
    assert (status.status, status.exit_code, status.reason) == ("killed", 137, "signal")


async def test_processes_are_limited(place: Place) -> None:
    script = "n=0; while [ $n -lt 60 ]; do sleep 5 & n=$((n+1)); done; echo all"
    status, said = await place.ended(script, limits=Limits(pids=30), timeout=20.0, grace=0.2)
    assert b"all" not in said.stdout
    assert status.status != "success"


async def test_the_processor_is_limited(place: Place) -> None:
    script = "read a _ </proc/uptime; timeout 1 sh -c 'while :; do :; done'; read b _ </proc/uptime; echo $a $b; times"
    _, said = await place.ended(script, limits=Limits(cpu_milli=200))
    began, ended = map(float, said.stdout.splitlines()[0].split())
    used = sum(60 * int(minutes) + float(seconds) for minutes, seconds in re.findall(rb"(\d+)m([\d.]+)s", said.stdout))
    assert 0.05 < used < 0.3 * (ended - began) + 0.05, said.stdout  # what it gets by slices of 0.1 s is not quite even


async def test_ulimits(place: Place) -> None:
    _, said = await place.ended("ulimit -n; ulimit -Hn", ulimits=(Ulimit("nofile", 111, 222),))
    assert said.stdout.split() == [b"111", b"222"]


async def test_a_file_system_in_memory(place: Place) -> None:
    script = "head -c 4194304 /dev/zero > /scratch/big; wc -c < /scratch/big"
    _, said = await place.ended(script, tmpfs=(Tmpfs("/scratch", 1 << 20),))
    assert int(said.stdout) <= 1 << 20


async def test_another_user(place: Place) -> None:
    _, said = await place.ended("id -u", user="12345")
    assert said.stdout == b"12345\n"


async def test_without_a_network(place: Place) -> None:
    _, said = await place.ended("ls /sys/class/net", network="none")
    assert b"eth" not in said.stdout


async def test_ports_are_bound_and_told(place: Place) -> None:
    script = "while :; do echo hello | nc -l -p 8080; done"
    container = await place.run(script, ports=(Port(8080), Port(8080, protocol="udp")))
    ports = (await container.status()).ports
    assert {(port.container, port.protocol, port.address) for port in ports} == {
        (8080, "tcp", "127.0.0.1"),
        (8080, "udp", "127.0.0.1"),
    }
    (tcp,) = [port for port in ports if port.protocol == "tcp"]
    async with asyncio.timeout(20):
        data = b""
        while data != b"hello\n":
            try:
                reader, writer = await asyncio.open_connection(tcp.address, tcp.host)
                data = await reader.read(6)
                writer.close()
            except ConnectionError:
                await asyncio.sleep(0.05)
    await container.stop(grace=0)
    assert (await container.status()).ports == ()


async def test_freeze_and_go_on(place: Place) -> None:
    container = await place.run("n=0; while :; do echo $n; n=$((n+1)); sleep 0.02; done")
    if not isinstance(container, Freezable):
        pytest.skip("cannot be frozen")
    said = Said()
    following = asyncio.create_task(container.logs(said))
    await said.until(b"\n3\n")
    await container.freeze()
    await container.freeze()
    assert (await container.status()).status == "running"
    await asyncio.sleep(0.2)
    frozen = (await logs(container, follow=False)).stdout
    await asyncio.sleep(0.3)
    assert (await logs(container, follow=False)).stdout == frozen
    await container.unfreeze()
    await container.unfreeze()
    following_number = len(frozen.split()) + 2
    await said.until(b"\n%d\n" % following_number)
    await container.freeze()
    async with asyncio.timeout(20):
        await container.stop(grace=0.2)
        await following
    assert (await container.status()).status == "cancelled"


async def test_statistics(place: Place) -> None:
    container = await place.run("exec dd if=/dev/zero of=/dev/null bs=16777216")
    if not isinstance(container, Measured):
        pytest.skip("cannot be measured")
    samples: list[Stat] = []

    async def take(stat: Stat) -> None:
        samples.append(stat)
        if len(samples) == 2:
            await container.stop(grace=0)

    async with asyncio.timeout(30):
        await container.stats(take)
    assert (await container.status()).done
    assert len(samples) >= 2
    assert all(one.at < other.at for one, other in pairwise(samples))
    assert 100 < max(sample.cpu_milli for sample in samples) < 20_000
    assert max(sample.memory_bytes for sample in samples) > 10_000_000
    assert max(sample.pids for sample in samples) >= 1


async def test_statistics_of_one_that_has_ended(place: Place) -> None:
    container = await place.run("true")
    if not isinstance(container, Measured):
        pytest.skip("cannot be measured")
    await wait(container)

    async def never(stat: Stat) -> None:
        raise AssertionError("it has ended")

    async with asyncio.timeout(20):
        await container.stats(never)
