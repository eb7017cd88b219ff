"""What a task may wish for beyond a command in an environment: what a place says it keeps is looked at from inside.

Ports are in `extras`, restart policies and timeouts in `endings`, stdin in `containers`.
"""

from __future__ import annotations

import itertools
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import pytest

from conveyor_runtime.errors import TerminalError
from conveyor_runtime.orchestra import (
    ContainerStatus,
    ExitStatus,
    HostMount,
    Limits,
    Mount,
    Tmpfs,
    Ulimit,
    Wish,
)
from conveyor_runtime.testing.place import Place, Said

MIB = 1 << 20
_SYS_ADMIN = 1 << 21


class Inside(Protocol):
    """Runs a shell script to its end in a container or sandbox with these options, a new one each time."""

    async def __call__(self, script: str, **options: Any) -> tuple[ContainerStatus | ExitStatus, Said]: ...


async def cpu_limit(place: Place, inside: Inside) -> None:
    script = "read a _ </proc/uptime; timeout 1 sh -c 'while :; do :; done'; read b _ </proc/uptime; echo $a $b; times"
    _, said = await inside(script, limits=Limits(cpu_milli=200))
    began, ended = map(float, said.stdout.splitlines()[0].split())
    used = sum(60 * int(minutes) + float(seconds) for minutes, seconds in re.findall(rb"(\d+)m([\d.]+)s", said.stdout))
    assert 0.05 < used < 0.3 * (ended - began) + 0.05, said.stdout  # what it gets by slices of 0.1 s is not quite even


async def memory_limit(place: Place, inside: Inside) -> None:
    status, _ = await inside("tail /dev/zero", limits=Limits(memory_bytes=48 * MIB))
    assert (status.status, status.exit_code, status.reason) == ("killed", 137, "oom")
    status, _ = await inside("kill -9 $$", limits=Limits(memory_bytes=48 * MIB))
    assert (status.status, status.exit_code, status.reason) == ("killed", 137, "signal")


async def pids_limit(place: Place, inside: Inside) -> None:
    script = "n=0; while [ $n -lt 60 ]; do sleep 5 > /dev/null 2>&1 & n=$((n+1)); done; echo all"
    status, said = await inside(script, limits=Limits(pids=30))
    assert b"all" not in said.stdout
    assert status.status != "success"


async def disk_limit(place: Place, inside: Inside) -> None:
    await _is_full(inside, "/tmp/big", limits=Limits(disk_bytes=4 * MIB))  # noqa: S108 - its own


async def volume_sizes(place: Place, inside: Inside) -> None:
    await _is_full(inside, "m/big", mounts=(Mount("m", "m", size_bytes=4 * MIB),))


async def tmpfs(place: Place, inside: Inside) -> None:
    await _is_full(inside, "/scratch/big", tmpfs=(Tmpfs("/scratch", 4 * MIB),))
    _, said = await inside("grep -c ' /scratch tmpfs ' /proc/mounts; ls /scratch", tmpfs=(Tmpfs("/scratch"),))
    assert said.stdout == b"1\n"


async def _is_full(inside: Inside, path: str, **options: Any) -> None:
    """What fits in arrives, and no more."""
    fill = f"head -c %d /dev/zero > {path}; wc -c < {path}"
    script = f"{fill % (2 * MIB)}; {fill % (8 * MIB)}"
    _, said = await inside(script, **options)
    small, large = map(int, said.stdout.split())
    assert small == 2 * MIB
    assert large <= 4 * MIB


async def ulimits(place: Place, inside: Inside) -> None:
    # Not of files: runc up to 1.1 gives an exec the hard limit for the soft one once in a while (its issue 4195).
    _, said = await inside("ulimit -t; ulimit -Ht", ulimits=(Ulimit("cpu", 111, 222),))
    assert said.stdout.split() == [b"111", b"222"]


async def user(place: Place, inside: Inside) -> None:
    _, said = await inside("id -u", user="12345")
    assert said.stdout == b"12345\n"
    _, said = await inside("id -u; id -g", user="12345:23456")
    assert said.stdout == b"12345\n23456\n"


async def privileged(place: Place, inside: Inside) -> None:
    _, said = await inside("grep CapEff /proc/self/status", privileged=True)
    assert int(said.stdout.split()[1], 16) & _SYS_ADMIN


async def mounts(place: Place, inside: Inside) -> None:
    await inside("echo x > m/f", mounts=(Mount("m", "m"),))
    _, said = await inside("cat deep/er/f", mounts=(Mount("m", "deep/er"),))
    assert said.stdout == b"x\n"


async def absolute_mount_paths(place: Place, inside: Inside) -> None:
    status, said = await inside("echo x > /mnt/data/f && pwd", workdir="/else/where", mounts=(Mount("m", "/mnt/data"),))
    assert (status.status, said.stdout) == ("success", b"/else/where\n")
    _, said = await inside("cat /else/where/m/f", workdir="/else/where", mounts=(Mount("m", "m"),))
    assert said.stdout == b"x\n"


async def read_only_mounts(place: Place, inside: Inside) -> None:
    await inside("echo x > m/f", mounts=(Mount("m", "m"),))
    status, said = await inside("cat m/f; echo y > m/g", mounts=(Mount("m", "m", read_only=True),))
    assert (status.status, said.stdout) == ("error", b"x\n")


async def host_mounts(place: Place, inside: Inside) -> None:
    path = place.host_path
    if path is not None:
        (path / "tool").mkdir(parents=True)
        (path / "tool" / "file").write_text("from the host")
    mounts = (HostMount(f"{path}/tool", "/ro"), HostMount(f"{path}/tool", "/rw", read_only=False))
    status, said = await inside("cat /ro/file; echo x > /rw/new; echo y > /ro/newer", host_mounts=mounts)
    assert (status.status, said.stdout) == ("error", b"from the host")
    assert path is not None
    assert [(path / "tool" / name).exists() for name in ("new", "newer")] == [True, False]


async def no_network(place: Place, inside: Inside) -> None:
    assert await _network(inside, "none") == ([], False)


async def bridge(place: Place, inside: Inside) -> None:
    routes, is_ours = await _network(inside, "bridge")
    assert routes
    assert not is_ours


async def host_network(place: Place, inside: Inside) -> None:
    _, is_ours = await _network(inside, "host")
    assert is_ours


async def named_network(place: Place, inside: Inside) -> None:
    routes, is_ours = await _network(inside, place.network or "no-such-network")
    assert routes
    assert not is_ours
    assert routes != (await _network(inside, "default", run="run-2"))[0]


async def _network(inside: Inside, name: str, **options: Any) -> tuple[list[bytes], bool]:
    """The routes of a network, and whether it is that of this process: what listens here is seen there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _, said = await inside("cat /proc/net/route; echo --; cat /proc/net/tcp", network=name, **options)
        routes, _, sockets = said.stdout.partition(b"--\n")
        return routes.splitlines()[1:], b"0100007F:%04X " % listener.getsockname()[1] in sockets


PROOFS: dict[Wish, Callable[[Place, Inside], Awaitable[None]]] = {
    "cpu limit": cpu_limit,
    "memory limit": memory_limit,
    "pids limit": pids_limit,
    "disk limit": disk_limit,
    "volume sizes": volume_sizes,
    "tmpfs": tmpfs,
    "ulimits": ulimits,
    "user": user,
    "privileged": privileged,
    "mounts": mounts,
    "absolute mount paths": absolute_mount_paths,
    "read-only mounts": read_only_mounts,
    "host mounts": host_mounts,
    "network none": no_network,
    "network bridge": bridge,
    "network host": host_network,
    "named network": named_network,
}


async def proven_or_refused(wish: Wish, kept: set[Wish], place: Place, inside: Inside) -> None:
    """A wish that is kept is proven; with another one, nothing starts."""
    if wish in kept:
        await PROOFS[wish](place, inside)
    else:
        with pytest.raises(pytest.skip.Exception, match="not kept here"):
            await PROOFS[wish](place, inside)


@pytest.mark.parametrize("wish", PROOFS)
async def test_a_container_keeps_it_or_is_refused(place: Place, wish: Wish) -> None:
    numbers = itertools.count()

    async def inside(script: str, **options: Any) -> tuple[ContainerStatus | ExitStatus, Said]:
        return await place.ended(script, id=f"task-{next(numbers)}", **options)

    await proven_or_refused(wish, place.keeps, place, inside)


async def test_what_nobody_has_is_refused_before_anything_starts(place: Place) -> None:
    for options in ({"network": "no-such-network"}, {"host_mounts": (HostMount("/etc", "/host"),)}):
        with pytest.raises(TerminalError):
            await place.backend.run(place.ns(), place.sh("true", **options), place.owner())
        assert await place.backend.namespaces(place.installation) == []


async def test_the_images_own_command(place: Place) -> None:
    status, said = await place.ended("", command=())
    assert (status.status, said.stdout) == ("success", b"own\n")
