"""Output: from the beginning, live, apart, complete, as often as one likes."""

from __future__ import annotations

import asyncio
import hashlib

from conveyor_runtime.orchestra import Mount, Stream
from conveyor_runtime.testing.place import Place, Said, logs, wait

SHARED = (Mount("shared", "shared"),)
# Says one line at a time, each when it is allowed to.
TURNS = "for n in 1 2 3; do while [ ! -e shared/$n ]; do sleep 0.02; done; echo line$n; echo err$n >&2; done"


async def test_a_line_is_seen_before_the_end(place: Place) -> None:
    container = await place.run(TURNS, mounts=SHARED)
    said = Said()
    following = asyncio.create_task(container.logs(said))
    for number in (1, 2, 3):
        await place.run(f"echo > shared/{number}", id=f"allow-{number}", mounts=SHARED)
        await said.until(f"line{number}\n".encode())
        if number < 3:
            assert f"line{number + 1}".encode() not in said.stdout
            assert not (await container.status()).done
    async with asyncio.timeout(20):
        await following
    assert (said.stdout, said.stderr) == (b"line1\nline2\nline3\n", b"err1\nerr2\nerr3\n")


async def test_late_followers_get_it_from_the_beginning(place: Place) -> None:
    container = await place.run(TURNS, mounts=SHARED)
    for number in (1, 2):
        await place.run(f"echo > shared/{number}", id=f"allow-{number}", mounts=SHARED)
    early, late = Said(), [Said() for _ in range(5)]
    following = [asyncio.create_task(container.logs(early))]
    await early.until(b"line2\n")
    found = await (await place.open()).get(place.ns(), "task")
    following += [asyncio.create_task(found.logs(one)) for one in late]
    for one in late:
        await one.until(b"line2\n")
    so_far = await logs(container, follow=False)
    assert so_far.stdout == b"line1\nline2\n"
    await place.run("echo > shared/3", id="allow-3", mounts=SHARED)
    async with asyncio.timeout(20):
        await asyncio.gather(*following)
    for one in (early, *late, await logs(container), await logs(container, follow=False)):
        assert (one.stdout, one.stderr) == (b"line1\nline2\nline3\n", b"err1\nerr2\nerr3\n")


async def test_a_follower_that_gives_up_disturbs_nobody(place: Place) -> None:
    container = await place.run(TURNS, mounts=SHARED)
    for number in (1, 2):
        await place.run(f"echo > shared/{number}", id=f"allow-{number}", mounts=SHARED)
    leaving, staying = Said(), Said()
    gone = asyncio.create_task(container.logs(leaving))
    following = asyncio.create_task(container.logs(staying))
    await leaving.until(b"line1")
    gone.cancel()
    await asyncio.wait([gone], timeout=10)
    assert gone.cancelled()
    await place.run("echo > shared/3", id="allow-3", mounts=SHARED)
    async with asyncio.timeout(20):
        await following
    assert staying.stdout == b"line1\nline2\nline3\n"


async def test_what_a_follower_raises_ends_its_call_only(place: Place) -> None:
    container = await place.run("echo hello")

    async def angry(stream: Stream, data: bytes) -> None:
        raise ValueError("not for me")

    try:
        async with asyncio.timeout(20):
            await container.logs(angry)
    except ValueError:
        pass
    else:
        raise AssertionError("what the follower raised was lost")
    assert (await wait(container)).status == "success"
    assert (await logs(container)).stdout == b"hello\n"


async def test_no_output_at_all(place: Place) -> None:
    status, said = await place.ended("true")
    assert (status.status, said.stdout, said.stderr) == ("success", b"", b"")


async def test_bytes_stay_as_they_are(place: Place) -> None:
    script = r"""printf 'no end'; printf '\377\376\000\200\r\n\n\n' >&2; printf '\303'; sleep 0.2; printf '\274 half'"""
    _, said = await place.ended(script)
    assert said.stdout == "no endü half".encode()
    assert said.stderr == b"\xff\xfe\x00\x80\r\n\n\n"


async def test_megabytes_of_it(place: Place) -> None:
    """12 MiB in lines, and one line of 5 MB without an end on the other stream."""
    line = b"0123456789abcdef" * 8 + b"\n"
    text = line.decode().strip()
    script = f"yes {text} | head -c {len(line) * 98304}; yes {text} | head -c 5000000 | tr -d '\\n' >&2"
    container = await place.run(script)
    digests = {"stdout": hashlib.sha256(), "stderr": hashlib.sha256()}
    sizes = {"stdout": 0, "stderr": 0}

    async def take(stream: Stream, data: bytes) -> None:
        digests[stream].update(data)
        sizes[stream] += len(data)

    async with asyncio.timeout(60):
        await container.logs(take)
    errors = (line * 40000)[:5000000].replace(b"\n", b"")
    assert sizes == {"stdout": len(line) * 98304, "stderr": len(errors)}
    assert digests["stdout"].digest() == hashlib.sha256(line * 98304).digest()
    assert digests["stderr"].digest() == hashlib.sha256(errors).digest()


async def test_a_slow_follower_loses_nothing(place: Place) -> None:
    container = await place.run("seq 0 19999")
    taken: list[bytes] = []

    async def slow(stream: Stream, data: bytes) -> None:
        if len(taken) < 5:
            await asyncio.sleep(0.05)
        taken.append(data)

    async with asyncio.timeout(60):
        await container.logs(slow)
    assert b"".join(taken) == b"".join(b"%d\n" % n for n in range(20000))
