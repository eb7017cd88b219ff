"""What a container uses, from the engine's samples; right on cgroup v1 and v2."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from conveyor_runtime.orchestra.docker.reading import ThreadedReader
from conveyor_runtime.orchestra.docker.stream import Streaming
from conveyor_runtime.orchestra.status import Stat

__all__ = ["StatsReader", "parse_stat"]


class StatsReader:
    """The samples of one container, about one a second."""

    def __init__(self, api: Any, container: str) -> None:
        url = api._url("/containers/{0}/stats", container)
        self._streaming = Streaming(api, "GET", url, {"stream": 1})
        self._rest = b""

    def reader(self) -> ThreadedReader[Stat]:
        """Read them in a thread. The first one of the engine has nothing to compare with and is left out."""
        return ThreadedReader(self._read, self._streaming.stop)

    def _read(self) -> Stat | None:
        while True:
            line, found, rest = self._rest.partition(b"\n")
            if found:
                self._rest = rest
                sample = json.loads(line)
                if not sample["read"][:4] > "0001":
                    return None  # of a container that has ended: without a time, and the next ones will be like it
                stat = parse_stat(sample)
                if stat is not None:
                    return stat
                continue
            data = self._streaming.read()
            if data is None:
                return None
            self._rest += data


def parse_stat(sample: dict[str, Any]) -> Stat | None:
    """One sample of the engine; None for the first one, which has nothing before it.

    The share of the processor is what the container used of what the machine had to give since the sample before, after
    fn's and the docker command's formula. How many processors there are says `online_cpus`: the list per processor,
    which fn counted, is not there on cgroup v2.
    """
    cpu, before = sample.get("cpu_stats") or {}, sample.get("precpu_stats") or {}
    used = _number(cpu, "cpu_usage", "total_usage") - _number(before, "cpu_usage", "total_usage")
    given = _number(cpu, "system_cpu_usage") - _number(before, "system_cpu_usage")
    if not _number(before, "system_cpu_usage") or given <= 0:
        return None
    processors = _number(cpu, "online_cpus") or len((cpu.get("cpu_usage") or {}).get("percpu_usage") or ()) or 1
    memory = sample.get("memory_stats") or {}
    details = memory.get("stats") or {}
    # v2 calls it inactive_file, v1 counts it for the whole tree as total_inactive_file.
    cache = _number(details, "total_inactive_file") or _number(details, "inactive_file")
    limit = _number(memory, "limit")
    networks = (sample.get("networks") or {}).values()
    disk = (sample.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ()
    return Stat(
        at=datetime.fromisoformat(sample["read"][:26].rstrip("Z") + "+00:00").astimezone(UTC),
        cpu_milli=max(0.0, used / given * processors * 1000),
        memory_bytes=max(0, _number(memory, "usage") - cache),
        memory_limit_bytes=limit if limit < 1 << 60 else 0,
        pids=_number(sample, "pids_stats", "current"),
        network_in_bytes=sum(_number(network, "rx_bytes") for network in networks),
        network_out_bytes=sum(_number(network, "tx_bytes") for network in networks),
        disk_read_bytes=sum(_number(entry, "value") for entry in disk if str(entry.get("op")).lower() == "read"),
        disk_written_bytes=sum(_number(entry, "value") for entry in disk if str(entry.get("op")).lower() == "write"),
    )


def _number(found: dict[str, Any], *path: str) -> int:
    value: Any = found
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return int(value) if isinstance(value, int | float) else 0
