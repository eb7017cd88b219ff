"""Volumes: shared within a namespace, apart from those of another, and copied without a way out."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator

import pytest

from conveyor_runtime.errors import Gone, TerminalError
from conveyor_runtime.orchestra import Mount, Volume, VolumeCopy
from conveyor_runtime.testing.place import Place, wait

DATA = (Mount("data", "data"),)


async def test_shared_by_the_tasks_of_a_namespace(place: Place) -> None:
    status, _ = await place.ended("echo world > ./test/hello", id="one", mounts=(Mount("test", "test"),))
    assert status.status == "success"
    _, said = await place.ended("cat ./test/hello", id="two", mounts=(Mount("test", "test"),))
    assert said.stdout == b"world\n"


async def test_of_the_same_name_in_another_namespace_is_another(place: Place) -> None:
    await place.ended("echo mine > data/file", mounts=DATA)
    status, said = await place.ended("ls data", run="run-2", mounts=DATA)
    assert (status.status, said.stdout) == ("success", b"")


async def test_two_at_one_path_in_two_tasks(place: Place) -> None:
    for name in ("a", "b"):
        await place.ended(f"echo {name} > here/file", id=f"write-{name}", mounts=(Mount(name, "here"),))
    for name in ("a", "b"):
        _, said = await place.ended("cat here/file", id=f"read-{name}", mounts=(Mount(name, "here"),))
        assert said.stdout == f"{name}\n".encode()


async def test_deep_paths_and_several_mounts(place: Place) -> None:
    mounts = (Mount("a", "deep/er/a"), Mount("b", "deep/b"), Mount("a", "again"))
    status, said = await place.ended("echo x > deep/er/a/f; cat again/f; ls -d deep/b deep/er", mounts=mounts)
    assert (status.status, said.stdout) == ("success", b"x\ndeep/b\ndeep/er\n")


async def test_at_an_absolute_path(place: Place) -> None:
    await place.ended("echo x > /mnt/data/f", id="one", mounts=(Mount("data", "/mnt/data"),))
    _, said = await place.ended("cat data/f", id="two", mounts=DATA)
    assert said.stdout == b"x\n"


async def test_read_only(place: Place) -> None:
    await place.ended("echo x > data/f", id="one", mounts=DATA)
    mounts = (Mount("data", "data", read_only=True),)
    status, said = await place.ended("cat data/f; echo y > data/g", id="two", mounts=mounts)
    assert (status.status, said.stdout) == ("error", b"x\n")


@pytest.mark.parametrize("name", ["../x", "", "a/b", "-x", "x" * 64])
async def test_names_that_lead_elsewhere_are_refused(place: Place, name: str) -> None:
    with pytest.raises(TerminalError):
        await place.backend.run(place.ns(), place.sh("true", mounts=(Mount(name, "m"),)), place.owner())
    with pytest.raises(TerminalError):
        await place.backend.create_volume(place.ns(), name, place.owner())
    assert await place.backend.namespaces(place.installation) == []


async def volume(place: Place, run: str = "run") -> Volume:
    """A volume made by itself."""
    return await place.backend.create_volume(place.ns(run), "data", place.owner(run))


async def test_made_by_itself_once(place: Place) -> None:
    one = await volume(place)
    assert one.name == "data"
    await place.ended("echo x > data/f", id="one", mounts=DATA)
    two = await (await place.open()).create_volume(place.ns(), "data", place.owner())
    assert two.name == "data"
    _, said = await place.ended("cat data/f", id="two", mounts=DATA)
    assert said.stdout == b"x\n"


async def test_removed_with_what_is_in_it(place: Place) -> None:
    one = await volume(place)
    writer = await place.run("echo x > data/f", id="one", mounts=DATA)
    await wait(writer)
    await writer.cleanup()
    await one.cleanup()
    await one.cleanup()
    status, said = await place.ended("ls data", id="two", mounts=DATA)
    assert (status.status, said.stdout) == ("success", b"")


async def test_a_namespace_of_volumes_alone_is_closed_too(place: Place) -> None:
    await volume(place)
    found = await place.backend.namespaces(place.installation)
    assert [(info.ns, info.run_id, info.owners) for info in found] == [(place.ns(), "run", (place.owner(),))]
    await place.backend.close_namespace(place.ns())
    assert await place.backend.namespaces(place.installation) == []


async def copying(place: Place, run: str = "run") -> VolumeCopy:
    """The same, if it can be copied."""
    found = await volume(place, run)
    if not isinstance(found, VolumeCopy):
        pytest.skip("volumes cannot be copied")
    return found


def archive(*members: tuple[str, bytes | str]) -> bytes:
    """A tar: bytes are a file's content, `-> x` a symbolic link, `=> x` a hard link, `dir`, `fifo`, `device`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
                continue
            kinds = {"->": tarfile.SYMTYPE, "=>": tarfile.LNKTYPE, "di": tarfile.DIRTYPE, "fi": tarfile.FIFOTYPE}
            info.type = kinds.get(what[:2], tarfile.CHRTYPE)
            info.linkname = what[3:] if what[1] == ">" else ""
            info.mode = 0o755
            tar.addfile(info)
    return buffer.getvalue()


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    """In sizes that fit no block."""
    for start in range(0, len(data), 10_007):
        yield data[start : start + 10_007]


async def contents(volume: VolumeCopy, *paths: str) -> dict[str, bytes | None]:
    """What a copy has: content of files, None for others."""
    data = b"".join([piece async for piece in volume.copy_out(*paths)])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {info.name: found.read() if info.isfile() and (found := tar.extractfile(info)) else None for info in tar}


async def test_copied_out_by_path(place: Place) -> None:
    found = await copying(place)
    script = "echo file-a > data/a.txt; mkdir -p data/sub/deep; echo file-b > data/sub/b.txt; echo c > data/sub/deep/-c"
    await place.ended(script, mounts=DATA)
    assert await contents(found, "a.txt") == {"a.txt": b"file-a\n"}
    sub = await contents(found, "sub")
    assert {name: data for name, data in sub.items() if data} == {"sub/b.txt": b"file-b\n", "sub/deep/-c": b"c\n"}
    both = await contents(found, "sub/deep/-c", "a.txt")
    assert both == {"sub/deep/-c": b"c\n", "a.txt": b"file-a\n"}
    everything = {name.removeprefix("./"): data for name, data in (await contents(found)).items() if data}
    assert everything == {"a.txt": b"file-a\n", "sub/b.txt": b"file-b\n", "sub/deep/-c": b"c\n"}


async def test_copied_in_and_seen_by_tasks(place: Place) -> None:
    found = await copying(place)
    big = bytes(range(256)) * 8192
    await found.copy_in(pieces(archive(("dir", "dir"), ("dir/big", big), ("ünï code", b"u"), ("link", "-> dir/big"))))
    status, said = await place.ended("wc -c < data/link; cat 'data/ünï code'; [ -L data/link ]", mounts=DATA)
    assert (status.status, said.stdout.split()) == ("success", [str(len(big)).encode(), b"u"])
    assert (await contents(found, "dir"))["dir/big"] == big


async def test_copied_from_one_volume_into_another(place: Place) -> None:
    source, target = await copying(place, "one"), await copying(place, "two")
    await source.copy_in(pieces(archive(("a", b"1"), ("b/c", b"2"))))
    await target.copy_in(source.copy_out())
    assert await contents(target, "a", "b/c") == {"a": b"1", "b/c": b"2"}


@pytest.mark.parametrize(
    "members",
    [
        [("../out", b"x")],
        [("/tmp/conveyor-suite-out", b"x")],  # noqa: S108 - it must not come to be
        [("a/../../out", b"x")],
        [("way", "-> /tmp"), ("way/conveyor-suite-out", b"x")],
        [("way", "-> .."), ("way/out", b"x")],
        [("hard", "=> /etc/passwd")],
        [("hard", "=> ../../meta.json")],
        [("node", "device")],
        [("pipe", "fifo")],
    ],
    ids=lambda members: "+".join(f"{name} {what if isinstance(what, str) else ''}".strip() for name, what in members),
)
async def test_archives_that_lead_out_are_refused(place: Place, members: list[tuple[str, bytes | str]]) -> None:
    found = await copying(place)
    with pytest.raises(TerminalError):
        await found.copy_in(pieces(archive(*members)))
    status, _ = await place.ended("[ ! -e /tmp/conveyor-suite-out ] && [ ! -e data/../out ]", mounts=DATA)
    assert status.status == "success"


@pytest.mark.parametrize("path", ["..", "../x", "/etc", "a/../../x"])
async def test_paths_that_lead_out_are_refused(place: Place, path: str) -> None:
    found = await copying(place)
    with pytest.raises(TerminalError):
        await contents(found, path)


async def test_a_path_that_is_not_there(place: Place) -> None:
    found = await copying(place)
    with pytest.raises(Gone):
        await contents(found, "nothing")
