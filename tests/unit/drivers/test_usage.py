"""What a container used, told in few words however long it ran."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from conveyor_runtime.orchestra import Stat
from drivers.usage import Usage

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def stat(second: int, memory: int) -> Stat:
    return Stat(BEGIN + timedelta(seconds=second), second % 1000, memory, 0, 1, 0, 0, 0, 0)


async def test_nothing_was_seen() -> None:
    assert Usage().facts() == {}


async def test_a_few_samples_are_told_as_they_were() -> None:
    usage = Usage()
    await usage.add(stat(1, 5))
    await usage.add(stat(2, 4))
    assert usage.facts() == {
        "usage": {
            "peakMemoryBytes": 5,
            "points": [
                {"at": "2026-01-01T00:00:01+00:00", "cpuMilli": 1, "memoryBytes": 5},
                {"at": "2026-01-01T00:00:02+00:00", "cpuMilli": 2, "memoryBytes": 4},
            ],
        }
    }


async def test_ten_hours_are_a_few_points_and_never_many_in_memory() -> None:
    usage = Usage()
    for second in range(36_000):
        await usage.add(stat(second, 1 << 30 if second == 12_345 else 1 << 20))
        assert len(usage._samples) < 480
    found = usage.facts()["usage"]
    assert found["peakMemoryBytes"] == 1 << 30
    times = [datetime.fromisoformat(point["at"]) for point in found["points"]]
    assert 12 <= len(times) <= 24
    assert times == sorted(times)
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]
    assert max(gaps) < 3 * 36_000 / len(times)
    assert len(json.dumps(found)) < 3000
