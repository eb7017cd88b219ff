"""Fewer samples that say the same, after fn's Decimate."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from conveyor_runtime.errors import TerminalError
from conveyor_runtime.orchestra.status import Stat

__all__ = ["average", "decimate"]


def average(samples: Sequence[Stat]) -> Stat:
    """One sample in place of several, at the mean of their times, every figure the mean of theirs.

    Sizes are rounded down to whole bytes. Raises `TerminalError` for none at all.
    """
    if not samples:
        raise TerminalError("there is no average of no samples")
    first, count = samples[0], len(samples)
    elapsed = sum((sample.at - first.at for sample in samples), timedelta())
    return Stat(
        at=first.at + elapsed / count,
        cpu_milli=sum(sample.cpu_milli for sample in samples) / count,
        memory_bytes=sum(sample.memory_bytes for sample in samples) // count,
        memory_limit_bytes=sum(sample.memory_limit_bytes for sample in samples) // count,
        pids=sum(sample.pids for sample in samples) // count,
        network_in_bytes=sum(sample.network_in_bytes for sample in samples) // count,
        network_out_bytes=sum(sample.network_out_bytes for sample in samples) // count,
        disk_read_bytes=sum(sample.disk_read_bytes for sample in samples) // count,
        disk_written_bytes=sum(sample.disk_written_bytes for sample in samples) // count,
    )


def decimate(most: int, samples: Sequence[Stat]) -> list[Stat]:
    """At most `most` samples: the span of time is cut into as many windows, and each window that has any is averaged.

    A list that is short enough is returned as it is; the last window takes all that is left. Samples need not be in
    order: they are put in order by time, where fn's walk went round for ever, as it did when the whole span was shorter
    than the number of windows in its clock's units.
    """
    if len(samples) <= most:
        return list(samples)
    if most <= 0:
        return []
    ordered = sorted(samples, key=lambda sample: sample.at)
    window = (ordered[-1].at - ordered[0].at) / most
    found: list[Stat] = []
    position, end = 0, ordered[0].at
    while position < len(ordered):
        end = end + window if window else ordered[position].at  # a span too short to be cut still goes forward
        begin = position
        if len(found) == most - 1:
            position = len(ordered)
        while position < len(ordered) and ordered[position].at <= end:
            position += 1
        if position > begin:
            found.append(average(ordered[begin:position]))
    return found
