"""What only some backends can do: ports, to halt, to measure."""

from __future__ import annotations

import asyncio
import socket
from itertools import pairwise

import pytest

from conveyor_runtime.orchestra import Freezable, Measured, Port, Stat
from conveyor_runtime.testing.place import PATIENCE, Place, Said, logs, wait


def free_port() -> int:
    """A port of this machine's loopback that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def answers(port: Port) -> None:
    """Wait until it says hello there."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                reader, writer = await asyncio.open_connection(port.address, port.host)
                data = await reader.read(6)
                writer.close()
            except ConnectionError:
                data = b""
            if data == b"hello\n":
                return
            await asyncio.sleep(0.05)


async def test_ports_are_bound_and_told(place: Place) -> None:
    script = "while :; do echo hello | nc -l -p 8080; done"
    container = await place.run(script, ports=(Port(8080), Port(8080, protocol="udp")))
    ports = (await container.status()).ports
    assert {(port.container, port.protocol, port.address) for port in ports} == {
        (8080, "tcp", "127.0.0.1"),
        (8080, "udp", "127.0.0.1"),
    }
    (tcp,) = [port for port in ports if port.protocol == "tcp"]
    await answers(tcp)
    await container.stop(grace=0)
    assert (await container.status()).ports == ()


async def test_a_port_is_published_where_it_was_asked_for(place: Place) -> None:
    asked = Port(8080, host=free_port())
    container = await place.run("while :; do echo hello | nc -l -p 8080; done", ports=(asked,))
    assert (await container.status()).ports == (asked,)
    await answers(asked)


async def test_all_ports_of_the_image_are_published(place: Place) -> None:
    container = await place.run("while :; do echo hello | nc -l -p 8081; done", publish_all=True)
    ports = (await container.status()).ports
    assert {(port.container, port.protocol) for port in ports} == {(8081, "tcp")}
    for port in ports:  # one for each kind of address, if the backend has it so
        if "." in port.address:
            await answers(port)


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
