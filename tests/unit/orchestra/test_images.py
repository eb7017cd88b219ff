"""Pulls that are shared, images that make room, samples that become fewer, networks that are spread."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from conveyor_runtime.errors import BackendError, ConfigError, Gone, TerminalError
from conveyor_runtime.orchestra import Stat
from conveyor_runtime.orchestra.cache import CachedImage, ImageCache, clean
from conveyor_runtime.orchestra.decimate import average, decimate
from conveyor_runtime.orchestra.flights import Flights
from conveyor_runtime.orchestra.networks import Networks

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class Work:
    def __init__(self) -> None:
        self.begun = self.cancelled = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> str:
        self.begun += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return f"done {self.begun}"


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_ten_who_ask_share_one_flight() -> None:
    flights, work = Flights[str](), Work()
    waiting = [asyncio.create_task(flights.join("a", work)) for _ in range(10)]
    await settle()
    work.go.set()
    assert {await one for one in waiting} == {"done 1"}
    assert await flights.join("a", work) == "done 2"


async def test_one_waiters_cancellation_is_its_own() -> None:
    flights, work = Flights[str](), Work()
    first, second, third = (asyncio.create_task(flights.join("a", work)) for _ in range(3))
    await settle()
    first.cancel()
    await asyncio.wait([first])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await flights.join("a", work)
    third.cancel()
    await asyncio.wait([third])
    work.go.set()
    assert await second == "done 1"
    assert (first.cancelled(), third.cancelled(), work.begun, work.cancelled) == (True, True, 1, 0)


async def test_when_the_last_one_leaves_the_work_ends() -> None:
    flights, work = Flights[str](), Work()
    waiting = [asyncio.create_task(flights.join("a", work)) for _ in range(2)]
    await settle()
    for one in waiting:
        one.cancel()
    await asyncio.wait(waiting)
    await settle()
    assert work.cancelled == 1
    work.go.set()
    assert await flights.join("a", work) == "done 2"


async def test_an_error_is_for_all_and_then_forgotten() -> None:
    flights, work = Flights[str](), Work()
    work.error = BackendError("down")
    waiting = [asyncio.create_task(flights.join("a", work)) for _ in range(3)]
    other = asyncio.create_task(flights.join("b", work))
    await settle()
    work.go.set()
    for outcome in await asyncio.gather(*waiting, other, return_exceptions=True):
        assert isinstance(outcome, BackendError)
    assert work.begun == 2
    work.error = None
    assert await flights.join("a", work) == "done 3"


def image(name: str, size: int = 512, *names: str) -> CachedImage:
    return CachedImage(name, names or (f"{name}:latest",), size)


def test_the_least_recently_used_goes_first() -> None:
    cache = ImageCache(1024)
    a, b, c = image("a"), image("b"), image("c")
    for one in (a, b, c):
        cache.seen(one)
    cache.mark_busy(a)
    cache.mark_free(a)
    assert cache.size_bytes == 1536
    assert cache.pop() == b
    assert cache.pop() is None


def test_busy_images_stay_until_their_last_use_is_over() -> None:
    cache = ImageCache(100)
    huge = image("huge", 4096)
    cache.mark_busy(huge)
    cache.mark_busy(huge)
    cache.seen(huge)
    assert cache.pop() is None
    cache.mark_free(huge)
    assert cache.pop() is None
    cache.mark_free(huge)
    cache.mark_free(huge)
    assert cache.pop() == huge


def test_exempt_by_what_it_names() -> None:
    cache = ImageCache(0, ["busybox", "q.io/tools:1"])
    for one in (
        image("1", 9, "busybox:latest"),
        image("2", 9, "docker.io/library/busybox"),
        image("3", 9, "q.io/tools:1"),
    ):
        cache.seen(one)
        cache.mark_busy(one)
        cache.mark_free(one)
    assert cache.size_bytes == 0
    cache.seen(image("4", 9, "<none>:<none>", "q.io/tools:2"))
    assert cache.is_full
    with pytest.raises(TerminalError):
        ImageCache(0, ["NOT AN IMAGE"])


@pytest.mark.looptime
async def test_cleaning_removes_as_much_as_it_must_and_not_too_fast() -> None:
    cache = ImageCache(1024, ["zoo0"])
    images = [image(f"zoo{number}") for number in range(5)]
    for one in images:
        cache.seen(one)
    gone: list[tuple[str, float]] = []

    async def remove(one: CachedImage) -> None:
        gone.append((one.id, asyncio.get_running_loop().time()))

    assert await clean(cache, remove, per_second=2) == ["zoo1", "zoo2"]
    assert gone[1][1] - gone[0][1] == pytest.approx(0.5)
    assert cache.size_bytes == 1024


@pytest.mark.looptime
async def test_what_cannot_be_removed_does_not_hold_up_the_rest() -> None:
    cache = ImageCache(0)
    for name in ("stuck", "gone", "fine"):
        cache.seen(image(name))

    async def remove(one: CachedImage) -> None:
        if one.id == "stuck":
            raise BackendError("in use")
        if one.id == "gone":
            raise Gone("not there")

    assert await clean(cache, remove, per_second=10) == ["fine"]
    assert cache.size_bytes == 512
    assert cache.pop() == image("stuck")


def stat(seconds: float, value: int = 0) -> Stat:
    return Stat(BEGIN + timedelta(seconds=seconds), float(value), value, value, value, value, value, value, value)


def test_averages() -> None:
    found = average([stat(60 * minute, minute) for minute in range(10)])
    assert found.at == BEGIN + timedelta(seconds=270)
    assert (found.memory_bytes, found.pids, found.cpu_milli) == (4, 4, 4.5)
    assert average([stat(1, 7)]) == stat(1, 7)
    with pytest.raises(TerminalError):
        average([])


@pytest.mark.parametrize(("count", "gap", "expected"), [(480, 0, 240), (700, 0, 240), (300, 0, 240), (300, 1200, 49)])
def test_fns_four_results(count: int, gap: int, expected: int) -> None:
    samples = [stat(second + (gap if gap and second >= 150 else 0), second) for second in range(count)]
    assert len(decimate(240, samples)) == expected


@pytest.mark.parametrize(
    "samples",
    [
        [stat(5)] * 300,
        [stat(number / 1_000_000) for number in range(300)],
        [stat(300 - number) for number in range(300)],
        [stat(number % 7) for number in range(300)],
        [stat(0)] * 299 + [stat(10**6)],
    ],
)
def test_it_always_ends_and_is_never_too_many(samples: list[Stat]) -> None:
    for most in (1, 2, 7, 240, 299):
        found = decimate(most, samples)
        assert 1 <= len(found) <= most
        assert [one.at for one in found] == sorted(one.at for one in found)


def test_short_lists_stay() -> None:
    samples = [stat(2), stat(1)]
    assert decimate(2, samples) == samples
    assert decimate(0, []) == decimate(0, samples) == decimate(-1, samples) == []


def test_networks_are_used_evenly() -> None:
    pool = Networks(["a", "b", "c"])
    with pool.use({}) as one, pool.use({}) as two, pool.use({}) as three:
        assert {one, two, three} == {"a", "b", "c"}
        with pool.use({"a": 1, "b": 1}) as fourth:
            assert fourth == "c"
    with pool.use({"a": 2, "c": 1, "another": 0}) as after:
        assert after == "b"
    for names in ([], ["a", "a"]):
        with pytest.raises(ConfigError):
            Networks(names)
