"""Sandboxes that stand ready: taken over once, whole, and gone with whoever has them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conveyor_runtime.config import BackendSettings, WarmSettings
from conveyor_runtime.errors import Gone
from conveyor_runtime.orchestra import Limits, Mount, Sandbox, Task, reap
from conveyor_runtime.orchestra.docker import DockerBackend, spec
from conveyor_runtime.orchestra.docker.warm import _is_plain
from conveyor_runtime.orchestra.docker.warm_names import KEEPER, kept_labels, taken_mark
from conveyor_runtime.orchestra.status import NamespaceInfo
from conveyor_runtime.testing import Place, run
from tests.contract.conftest import until

RUN = "01a1fe32-4057-7653-a624-7e598190e37a"

pytestmark = pytest.mark.docker


class Warm(Place):
    """A place whose backends keep sandboxes ready when they are told to."""

    def __init__(self, image: str, engine: Any, settings: WarmSettings) -> None:
        async def open_backend() -> DockerBackend:
            return await DockerBackend.open(BackendSettings(warm=settings))

        super().__init__(open_backend, image=image)
        self.engine = engine

    def names(self) -> list[str]:
        """Of all containers of this installation."""
        label = f"conveyor.installation={self.installation}"
        found = self.engine.containers(all=True, filters={"label": label})
        return sorted(it["Names"][0].lstrip("/") for it in found)

    def ready(self) -> list[str]:
        """Those that nobody owns."""
        return [name for name in self.names() if name.startswith("conveyor-warm.")]

    def volumes(self) -> list[str]:
        """Of this installation."""
        label = f"conveyor.installation={self.installation}"
        return [it["Name"] for it in self.engine.volumes(filters={"label": label})["Volumes"] or ()]

    async def keep(self) -> DockerBackend:
        """A backend that keeps one ready, when it stands there."""
        backend = await self.open()
        assert isinstance(backend, DockerBackend)
        backend.keep_warm(self.installation)
        await until(lambda: holds(backend, self.image))
        return backend

    async def sandbox(self, backend: Any, run: str = "run", **options: Any) -> Sandbox:
        """Start it."""
        found: Sandbox = await backend.start_sandbox(self.ns(run), self.task(**options), self.owner(run))
        return found


def holds(backend: Any, image: str) -> bool:
    """Whether it has one to hand over."""
    return bool(backend._warm._pool.ready(image))


@contextlib.asynccontextmanager
async def opened(image: str, engine: Any, settings: WarmSettings) -> AsyncIterator[Warm]:
    place = Warm(image, engine, settings)
    async with place:
        yield place
    assert place.names() == []
    assert place.volumes() == []


@pytest.fixture
async def place(busybox: str, docker_engine: Any) -> AsyncIterator[Warm]:
    async with opened(busybox, docker_engine, WarmSettings(images={busybox: 1})) as found:
        yield found


async def alive(info: NamespaceInfo) -> bool:
    return False


async def dead(info: NamespaceInfo) -> bool:
    return True


async def test_it_is_taken_over_whole_and_replaced(place: Warm, docker_engine: Any) -> None:
    backend = await place.keep()
    [name] = place.ready()
    identity = docker_engine.inspect_container(name)["Id"]
    assert await backend.namespaces(place.installation) == []
    sandbox = await place.sandbox(backend, limits=Limits(cpu_milli=1500, memory_bytes=64 << 20, pids=40))
    assert sandbox.id == identity
    found = docker_engine.inspect_container(identity)["HostConfig"]
    assert (found["CpuQuota"], found["Memory"], found["MemorySwap"], found["PidsLimit"]) == (
        150000,
        64 << 20,
        64 << 20,
        40,
    )
    await run(sandbox, "echo kept > file")
    # Another process finds it, and is told whose it is.
    other = await place.open()
    again = await other.get_sandbox(place.ns(), "sandbox")
    assert (again.id, (await run(again, "cat file; pwd"))[1].stdout) == (identity, b"kept\n/workspace\n")
    assert (await place.sandbox(other)).id == (await place.sandbox(backend)).id == identity
    [info] = await other.namespaces(place.installation)
    assert (info.ns, info.run_id, info.owners) == (place.ns(), "run", (place.owner(),))
    await until(lambda: holds(backend, place.image))
    assert name not in place.ready()
    await other.close_namespace(place.ns())
    assert place.names() == place.ready()
    with pytest.raises(Gone):
        await other.get_sandbox(place.ns(), "sandbox")
    assert await other.namespaces(place.installation) == []


async def test_never_handed_to_two(place: Warm) -> None:
    backends = [await place.keep() for _ in range(2)]
    runs = ["one", "two", "three"]
    # Each run is asked for in both processes, and there are fewer that stand ready than runs.
    asked = [(backend, name) for name in runs for backend in backends]
    found = await asyncio.gather(*(place.sandbox(backend, name) for backend, name in asked))
    ids = {name: {it.id for it, (_, of) in zip(found, asked, strict=True) if of == name} for name in runs}
    assert all(len(those) == 1 for those in ids.values()), ids
    assert len(set.union(*ids.values())) == len(runs)
    for name in runs:
        await backends[0].close_namespace(place.ns(name))


async def test_one_of_its_own_on_request(place: Warm) -> None:
    backend = await place.keep()
    stood = place.ready()
    await place.sandbox(backend, warm=False)
    assert place.ready() == stood
    assert f"{place.ns()}.sandbox" in place.names()


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({"limits": Limits(1500, 64 << 20, 40), "pull": "always", "warm": True}, True),
        ({"limits": Limits(disk_bytes=1 << 30)}, False),
        ({"mounts": (Mount("cache", "/cache"),)}, False),
        ({"user": "builder"}, False),
        ({"env": {"A": "b"}}, False),
        ({"network": "none"}, False),
        ({"privileged": True}, False),
        ({"workdir": "/src"}, False),
    ],
)
def test_what_must_be_known_at_creation(options: dict[str, Any], plain: bool) -> None:
    assert _is_plain(Task("sandbox", "image", **options)) == plain


async def test_killed_in_the_midst_of_a_takeover(place: Warm, docker_engine: Any) -> None:
    backend = await place.keep()
    stood, ns = place.ready(), place.ns(RUN)
    # Right before it was renamed: it is its keeper's still, and goes with that.
    labels = spec.labels(ns, "sandbox", place.owner(RUN), "volume")
    docker_engine.create_volume(taken_mark(f"{ns}.sandbox"), labels=labels)
    [info] = await backend.namespaces(place.installation)
    assert (info.ns, info.owners) == (ns, (place.owner(RUN),))
    await backend.close_namespace(ns)
    assert place.ready() == stood
    # Right after, while the run was being closed elsewhere: its name tells whose it is.
    docker_engine.rename(stood[0], f"{ns}.sandbox")
    [info] = await backend.namespaces(place.installation)
    assert (info.ns, info.run_id) == (ns, RUN)
    await reap(backend, place.installation, dead)
    assert await backend.namespaces(place.installation) == []
    assert f"{ns}.sandbox" not in place.names()


async def test_one_that_died_is_not_handed_over(place: Warm, docker_engine: Any) -> None:
    backend = await place.keep()
    [name] = place.ready()
    docker_engine.kill(name)
    sandbox = await place.sandbox(backend)
    assert (await run(sandbox, "echo works"))[1].stdout == b"works\n"
    await until(lambda: name not in place.names())


async def test_one_removed_by_hand_leaves_no_workspace(place: Warm, docker_engine: Any) -> None:
    backend = await place.keep()
    sandbox = await place.sandbox(backend)
    docker_engine.remove_container(sandbox.id, force=True)
    await backend.close_namespace(place.ns())
    await until(lambda: holds(backend, place.image))
    assert len(place.volumes()) == 2
    await reap(backend, place.installation, alive)
    assert len(place.volumes()) == 1
    assert len(place.ready()) == 1


async def test_on_request(busybox: str, docker_engine: Any) -> None:
    async with opened(busybox, docker_engine, WarmSettings(on_request=1, ttl=60)) as place:
        backend = await place.open()
        assert isinstance(backend, DockerBackend)
        backend.keep_warm(place.installation)
        await place.sandbox(backend, "first")
        assert place.ready() == []
        await place.sandbox(backend, "second", warm=True)
        await until(lambda: holds(backend, busybox))
        [name] = place.ready()
        identity = docker_engine.inspect_container(name)["Id"]
        assert (await place.sandbox(backend, "third")).id == identity


KEEPING = """
import asyncio, sys
from conveyor_runtime.config import BackendSettings, WarmSettings
from conveyor_runtime.orchestra.docker import DockerBackend

async def main():
    backend = await DockerBackend.open(BackendSettings(warm=WarmSettings(images={sys.argv[1]: 1})))
    backend.keep_warm(sys.argv[2])
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_what_a_killed_process_kept_is_reaped_and_nothing_else(place: Warm, docker_engine: Any) -> None:
    backend = await place.keep()
    own = place.ready()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", KEEPING, place.image, place.installation)
    try:
        await until(lambda: len(place.ready()) == 2, 30)
        await reap(backend, place.installation, alive)
        assert len(place.ready()) == 2
    finally:
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    assert len(place.ready()) == 2
    await reap(backend, "another", alive)
    assert len(place.ready()) == 2
    await reap(backend, place.installation, alive)
    assert place.ready() == own


async def test_age_tells_where_its_keeper_cannot_be_seen_or_has_lost_it(place: Warm, docker_engine: Any) -> None:
    backend = await place.open()
    elsewhere, here = "elsewhere pid:[1] 1 1", kept_labels(place.installation, 1)[KEEPER]
    new, old, lost = (f"conveyor-warm.{place.installation}-{which}" for which in ("new", "old", "lost"))
    taken = f"{place.ns()}.sandbox"  # however old: its keeper has no say in it any more
    for name, keeper, ttl in (
        (new, elsewhere, "3600"),
        (old, elsewhere, "-120"),
        (lost, here, "-120"),
        (taken, elsewhere, "-120"),
    ):
        labels = {"conveyor.installation": place.installation, KEEPER: keeper, "conveyor.ttl": ttl}
        docker_engine.create_container(place.image, ["sleep", "1"], name=name, labels=labels)
    try:
        await reap(backend, place.installation, alive)
        assert place.names() == [new, taken]
    finally:
        docker_engine.remove_container(new, force=True)
