"""Runs in the order they were made, all and those of a status, resource or pipeline: a page costs what it shows."""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Iterable
from heapq import merge
from itertools import islice
from typing import NamedTuple

from conveyor_runtime.models import Status

#: What is asked for: ALL, LIVE, or a kind of fact and its value: status (of ended runs), type, name, pipeline, or
#: resource (type, a dot, name).
Key = tuple[str, str]

ALL: Key = ("all", "")
LIVE: Key = ("live", "")

_TERMINAL = {status.value for status in Status if status.terminal}

_UNDER_WAY = {status.value.encode() for status in Status if not status.terminal}

_STATUS = re.compile(rb'"status":"(\w+)"')
_NAMES = re.compile(rb'"type":"([\w-]+)","name":"([\w-]+)"')
_PIPELINE = re.compile(rb'"pipeline":"([\w-]+)"')


class Facts(NamedTuple):
    """What a run is found by. The pipeline may be one that only its resource names."""

    status: str = ""
    type: str = ""
    name: str = ""
    pipeline: str = ""

    @classmethod
    def read(cls, raw: bytes) -> Facts:
        """Of a stored record, which need not be decoded for this."""
        status, names, pipeline = _STATUS.search(raw), _NAMES.search(raw), _PIPELINE.search(raw)
        type_, name = (names[1].decode(), names[2].decode()) if names is not None else ("", "")
        return cls(status[1].decode() if status else "", type_, name, pipeline[1].decode() if pipeline else "")

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self.status in _TERMINAL

    def keys(self) -> set[Key]:
        """Where it is found."""
        state = {("status", self.status)} if self.ended else {LIVE} if self.status else set()
        names = {("type", self.type), ("name", self.name), ("resource", f"{self.type}.{self.name}")}
        return {ALL, *state, *names, *([("pipeline", self.pipeline)] if self.pipeline else ())}


def still_under_way(before: bytes, after: bytes) -> bool:
    """Whether a stored run was written anew in the middle of it. Then it is found by the same as before: all but the
    status is pinned when it is made."""
    old, new = _STATUS.search(before), _STATUS.search(after)
    return old is not None and new is not None and old[1] in _UNDER_WAY and new[1] in _UNDER_WAY


class RunIndex:
    """Ids of runs by key, each list in ascending order. New ids are the highest, so they go in at the end."""

    def __init__(self) -> None:
        self._ids: dict[Key, list[str]] = {}
        self.live: set[str] = set()

    def change(self, run_id: str, before: Facts | None, after: Facts | None) -> None:
        """Note what is true of a run now, and was until now; None = it is not there."""
        if before == after:
            return
        old, new = before.keys() if before else set(), after.keys() if after else set()
        for key in old - new:
            self._remove(key, run_id)
        for key in new - old:
            insort(self._ids.setdefault(key, []), run_id)
        (self.live.add if LIVE in new else self.live.discard)(run_id)

    def count(self, keys: Iterable[Key]) -> int:
        """How many runs are found under these keys together."""
        return sum(len(self._ids.get(key, ())) for key in keys)

    def before(self, keys: Iterable[Key], run_id: str, count: int) -> list[str]:
        """The newest `count` of those found under any of these keys that are older than `run_id` ("" = any)."""
        parts = []
        for key in keys:
            ids = self._ids.get(key, [])
            end = bisect_left(ids, run_id) if run_id else len(ids)
            parts.append(ids[max(end - count, 0) : end][::-1])
        return list(islice(merge(*parts, reverse=True), count))

    def _remove(self, key: Key, run_id: str) -> None:
        ids = self._ids[key]
        del ids[bisect_left(ids, run_id)]
        if not ids:
            del self._ids[key]
